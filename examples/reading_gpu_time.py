"""What a training took of the GPU, in time and energy: `python examples/reading_gpu_time.py`.

NVML knows GPU time as the share of each sample period in which a kernel ran: so a reading has a
scope (this process, or whoever used the device), a source and a bound on its error, and takes 20 s
at least. Where there is no GPU, the step timer says what the host took.
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F

from timing import GpuMeter, StepTimer


def train(timer, device, seconds):
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256)).to(device)
    opt = torch.optim.AdamW(model.parameters())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        with timer("load_data"):
            x = torch.randn(64, 256).to(device)
        with timer("train_step"):
            opt.zero_grad()
            F.mse_loss(model(x), x).backward()
            opt.step()


def told_by_nvml(use):
    yield f"{use.name} ({use.uuid}), over {use.window_seconds:.1f} s"
    if use.active is not None:
        active = use.active
        yield f"  active {active.gpu_active_seconds:.2f} s, known to {active.bound_seconds:.2f} s"
        yield f"  scope: {active.scope}; source: {active.source}"
    if use.energy_joules is not None:
        yield f"  energy {use.energy_joules:.1f} J of the whole device, by {use.energy_source}"
    for reason, throttled in (use.throttled_seconds or {}).items():
        if throttled:
            yield f"  throttled by {reason} for {throttled:.2f} s"
    # What a card, a driver or a permission refuses is said, and is never a zero.
    for why in use.unavailable:
        yield f"  {why}"


def told_by_timer(timer):
    for name, phase in timer.phases().items():
        yield (
            f"  {name}: {phase.count} passes, {phase.total_seconds:.2f} s by the clock "
            f"({phase.clock}), {phase.cpu_seconds:.2f} s of CPU time"
        )


def main(seconds=None):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    timer = StepTimer()
    with GpuMeter() as meter:
        train(timer, device, seconds or (25.0 if device == "cuda" else 2.0))
    for use in meter.uses:
        print(*told_by_nvml(use), sep="\n")
    if meter.unavailable:
        print("no GPU time:", meter.unavailable)
    print("by the step timer:")
    print(*told_by_timer(timer), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="default: 25 on a GPU, 2 without")
    main(parser.parse_args().seconds)
