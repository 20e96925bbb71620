"""A training of at least a minute: RST against measured seconds, the GPU's active time, and joules.

The methods that share the constant rate follow one training. RST is of all that was run, by the
profile of the calibration; evaluations are in neither side of the comparison with measured time,
and in both of that with the GPU's active time, which NVML tells of the whole span, with a bound on
its error.
"""

import time

import torch
from rows import Row

from baselines.methods.names import find
from baselines.training.loop import train
from baselines.workloads import load
from on_gpu_parts.part import Part
from on_gpu_parts.reference import profile_of, target
from timing import Budget, GpuMeter
from timing.gpu import span

FOLLOWING = ("constant", "ema", "swa", "lawa")
SECONDS, SMOKE_SECONDS = 61.0, 1.0
EVALUATIONS = 16
POLL_SECONDS = 0.5
# What comes after the training, and a little for a machine that is slower than thought.
SECONDS_TO_END = 9.0


def budget_seconds(part, profile):
    """The RST with which a training takes the minute, or what there is left of the part's time."""
    # Where single timings add up to more than a loop, its measured time is less than its RST.
    over = 1 + max(0.0, profile.additivity_error)
    evaluations = len(FOLLOWING) * (EVALUATIONS + 1) * profile.seconds["evaluate"]
    left = part.seconds_left - SECONDS_TO_END - evaluations
    seconds = SMOKE_SECONDS if part.smoke else min(SECONDS, left)
    return seconds * over


def trained(part, share):
    """Train, for this share of the minute, and add rows; returns the points of all methods."""
    torch.set_num_threads(1)
    if part.smoke:
        # A span this short has no active time otherwise, and what it has would go untried.
        span.SHORTEST_WINDOW_SECONDS = 0.0
    profile = profile_of(part)
    workload = load(target(part)[1]["workload"])
    # That of the whole training, so that a share of it has its evaluations at the same steps.
    whole_seconds = part.data_of("training", "budget_seconds") or budget_seconds(part, profile)
    part.add(budget_seconds=whole_seconds)
    began = time.monotonic()
    points = []

    def on_point(method, point):
        elapsed = time.monotonic() - began
        points.append((method, point.step, point.rst_seconds.hex(), point.value, elapsed))
        part.add(points=points)

    # CUDA is started before the span, not in it.
    torch.zeros(1, device=part.device)
    with GpuMeter(0.05 if part.smoke else POLL_SECONDS) as meter:
        result = train(
            workload,
            [find(name) for name in FOLLOWING],
            0,
            Budget(whole_seconds * share),
            profile.seconds,
            workload.learning_rate,
            round(EVALUATIONS * share),
            on_point,
        )
        if part.device == "cuda":
            torch.cuda.synchronize()
    if result.error:
        raise SystemExit(result.error)
    steps = max(run.steps for run in result.runs)
    size = f"{workload.name}, {steps:,} steps"
    rst, measured = result.rst_seconds, result.measured_seconds
    part.add(
        Row("RST of all that was run", size, 1, rst, None, "s"),
        Row("measured seconds of it", size, 1, measured, None, "s"),
        Row("RST over measured seconds, less one", size, 1, 100 * (rst / measured - 1), None, "%"),
        steps=steps,
        rst_seconds=rst,
        measured_seconds=measured,
        unavailable=meter.unavailable,
        uses=[use.model_dump() for use in meter.uses],
    )
    for kind, timed in result.measurement.phases.items():
        # Of its warm-up alone there is no median.
        if timed.phase.median_seconds is not None:
            by_profile = sum(profile.seconds[name] * n for name, n in timed.operations.items())
            here, beside = timed.phase.median_seconds, f"{workload.name}, {timed.phase.clock}"
            ratios = {"the profile": here / by_profile}
            part.add(Row(f"one {kind}", beside, timed.phase.count, 1e3 * here, None, "ms", ratios))
    # Each run's points, and the test part at its end.
    evaluations = sum(len(run.points) + 1 for run in result.runs)
    with_evaluations = rst + evaluations * profile.seconds["evaluate"]
    if not meter.uses:
        part.note(f"NVML tells nothing: {meter.unavailable}")
    for use in meter.uses:
        add_use(part, use, size, steps, with_evaluations)
    return points


def add_use(part, use, size, steps, rst):
    """Add what NVML says of one GPU over the span, beside the RST of all in it."""
    size = f"{use.name}, {size}"
    if use.active is not None:
        active = use.active
        beside = {"RST, evaluations included": active.gpu_active_seconds / rst}
        beside["the span"] = active.gpu_active_seconds / use.window_seconds
        part.add(Row("GPU active, by NVML", size, 1, active.gpu_active_seconds, None, "s", beside))
        part.note(
            f"NVML's active time is of the {active.scope}, by its {active.source}, and right to "
            f"±{active.bound_seconds:.2g} s of a span of {use.window_seconds:.1f} s."
        )
    if use.energy_joules is not None:
        watts = use.energy_joules / use.window_seconds
        part.add(
            Row(f"energy, by {use.energy_source}", size, 1, use.energy_joules, None, "J"),
            Row("energy a step", size, 1, use.energy_joules / steps, None, "J"),
            Row("power", size, 1, watts, None, "W"),
        )
    part.note(
        f"Clocks {use.sm_clock_mean_mhz} MHz (at least {use.sm_clock_min_mhz}), memory "
        f"{use.memory_clock_mean_mhz} MHz, at most {use.temperature_max_celsius} °C; held back "
        f"{use.throttled_seconds} s; other processes {use.other_processes_begin} at the begin, "
        f"{use.other_processes_end} at the end."
    )
    for why in use.unavailable:
        part.note(f"NVML: {why}")


def main():
    part = Part(__doc__)
    trained(part, share=1.0)
    if not part.smoke and part.data_of("training", "measured_seconds") < 60:
        part.note("This is less than a minute: its part had not more time left.")


if __name__ == "__main__":
    main()
