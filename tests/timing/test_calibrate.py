"""Calibration measures what ran, in the proportions asked for; no speed is asserted."""

import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support.profiles import profile_of
from timing import Account, Operation, calibrate

FREE = 1e-4


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that nothing slows down."""
    probed(monkeypatch, lambda: FREE)


def probed(monkeypatch: pytest.MonkeyPatch, probe: Callable[[], float]) -> None:
    monkeypatch.setattr("timing.calibration.measure.cpu_probe_seconds", probe)


def test_operations_are_interleaved_in_their_proportions() -> None:
    order: list[str] = []
    calibration = calibrate(
        {
            "a": Operation(lambda: order.append("a")),
            "b": Operation(lambda: order.append("b"), every=4),
        },
        seconds=0.3,
        max_additivity_error=float("inf"),
    )
    # The warm-up of ten passes begins with the one numbered 0, which "b" is due in.
    assert "".join(order).startswith("ab" + "aaaab" * 2 + "a" + "aaaab" * 10)
    text = "".join(order[13:])
    assert text.count("a") >= 2 * 20
    assert set(text.replace("aaaab", "")) <= {"a"}
    samples = {name: cost.samples for name, cost in calibration.costs.items()}
    assert samples["a"] // 4 == samples["b"]


@pytest.mark.slow
def test_a_cost_is_the_time_the_operation_took() -> None:
    slept = 0.004
    calibration = calibrate(
        {"sleep": Operation(lambda: time.sleep(slept)), "nothing": Operation(lambda: None)},
        seconds=0.1,
        max_additivity_error=float("inf"),
    )
    # A sleep never ends early, so this lower bound holds on any machine.
    assert calibration.costs["sleep"].median_seconds >= slept
    assert 0 < calibration.costs["nothing"].median_seconds < slept
    assert calibration.costs["sleep"].spread_seconds >= 0


def test_the_first_steps_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    ran = 0

    def slow_at_first() -> None:
        nonlocal clock, ran
        ran += 1
        clock += 1.0 if ran <= 8 else 0.5

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    calibration = calibrate({"step": Operation(slow_at_first)}, 60.0, float("inf"))
    assert calibration.costs["step"].median_seconds == 0.5
    assert calibration.costs["step"].spread_seconds == 0
    assert calibration.costs["step"].samples == pytest.approx((ran - 10) / 2, abs=1)


def test_what_does_not_close_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    ran = 0

    def skewed_at_first() -> None:
        nonlocal clock, ran
        ran += 1
        clock += 10.0 if clock < 390 and ran % 3 == 0 else 1.0

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    fractions: list[float] = []
    calibration = calibrate({"step": Operation(skewed_at_first)}, 400.0, 0.5, fractions.append)
    assert 700 < clock <= 2 * 400 + 40
    assert fractions[-1] == 1.0
    assert calibration.additivity_error == 0.0


@pytest.mark.slow
@settings(max_examples=50, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(st.tuples(st.floats(0.1, 20.0), st.integers(1, 60)), min_size=1, max_size=5),
    st.floats(0.05, 200.0),
)
def test_the_time_is_kept_or_the_least_is_measured(
    operations: list[tuple[float, int]], seconds: float
) -> None:
    clock = 0.0

    def run(took: float) -> None:
        nonlocal clock
        clock += took

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "perf_counter", lambda: clock)
        probed(patched, lambda: FREE)
        calibration = calibrate(
            {
                str(place): Operation(partial(run, took), every)
                for place, (took, every) in enumerate(operations)
            },
            seconds,
            float("inf"),
        )
    # A warm-up, a pass of each kind, and what has no two samples by then.
    least = 5 * sum(took for took, _ in operations)
    assert seconds - least <= clock <= seconds + least
    assert min(cost.samples for cost in calibration.costs.values()) >= 2


def test_a_machine_that_grows_slower_does_so_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def slower_and_slower() -> None:
        nonlocal clock
        clock += 1.0 + clock / 1000

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    calibration = calibrate({"step": Operation(slower_and_slower)}, 500.0, float("inf"))
    # Timed first and then as a whole, the costs would predict a good quarter too little.
    assert abs(calibration.additivity_error) < 0.06


def test_skewed_timings_are_charged_at_their_median_and_do_not_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 0.0
    ran = 0

    def skewed() -> None:
        nonlocal clock, ran
        ran += 1
        clock += 5.0 if ran % 10 == 0 else 1.0

    def steady() -> None:
        nonlocal clock
        clock += 2.0

    operations = {"skewed": Operation(skewed), "steady": Operation(steady, every=4)}
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    # Ten blocks of twenty passes of each kind, after a warm-up of 20 s.
    calibration = calibrate(operations, 20.0 + 10 * 76.0 + 1.0, float("inf"))
    assert [cost.median_seconds for cost in calibration.costs.values()] == [1.0, 2.0]
    # Twenty passes: eighteen of a second and two of five, and a steady one at every fourth.
    loop_seconds = 18 * 1.0 + 2 * 5.0 + 5 * 2.0
    assert calibration.additivity_error == pytest.approx((20 * 1.0 + 5 * 2.0) / loop_seconds - 1)
    profile = profile_of([calibration], every={"skewed": 1, "steady": 4})
    account = Account(profile.seconds, "mlperf")
    for operation, times in profile.reference_iteration.items():
        account.charge(operation, 5 * times)
    assert account.rst_seconds == 20 * 1.0 + 5 * 2.0
    assert account.rst_seconds == pytest.approx(loop_seconds * (1 + profile.additivity_error))
    # More than a process of a profile may lack.
    assert "its additivity error is -21.1%" in calibration.errors()


class SharedProcessor:
    """A clock on which a neighbour doubles all times, in this share of every hundred seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shared: float) -> None:
        self.seconds = 0.0
        self.shared = shared
        monkeypatch.setattr(time, "perf_counter", lambda: self.seconds)
        probed(monkeypatch, lambda: FREE * self.factor)

    @property
    def factor(self) -> float:
        return 2.0 if self.seconds % 100 < 100 * self.shared else 1.0

    def work(self, seconds: float) -> None:
        # The neighbour may come or go in the middle.
        for _ in range(10):
            self.seconds += self.factor * seconds / 10


@pytest.mark.parametrize(("shared", "fewest"), [(0.6, 205), (0.8, 100), (0.92, 36)])
def test_passes_on_a_disturbed_processor_are_left_out(
    monkeypatch: pytest.MonkeyPatch, shared: float, fewest: int
) -> None:
    processor = SharedProcessor(monkeypatch, shared)
    operations = {
        "step": Operation(lambda: processor.work(1.0)),
        "rare": Operation(lambda: processor.work(0.25), every=4),
    }
    calibration = calibrate(operations, 1200.0, float("inf"))
    medians = {name: cost.median_seconds for name, cost in calibration.costs.items()}
    assert medians == {"step": pytest.approx(1.0), "rare": pytest.approx(0.25)}
    spreads = [cost.spread_seconds for cost in calibration.costs.values()]
    assert spreads == pytest.approx([0, 0], abs=1e-9)
    assert calibration.additivity_error == pytest.approx(0)
    # Of the passes: half as many are done in the neighbour's time.
    expected = shared / 2 / (1 - shared / 2)
    assert calibration.noise.disturbed_share == pytest.approx(expected, abs=0.06)
    assert calibration.noise.warnings == ()
    assert calibration.cpu_probe_seconds == FREE
    assert fewest <= calibration.costs["step"].samples < 1.1 * fewest


def test_a_processor_that_is_hardly_ever_free_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = SharedProcessor(monkeypatch, shared=0.98)
    operations = {"step": Operation(lambda: processor.work(1.0))}
    calibration = calibrate(operations, 500.0, float("inf"), known_probe=FREE)
    assert calibration.costs["step"].median_seconds == pytest.approx(2.0)
    # The few that were free are too few to stand for it.
    assert calibration.costs["step"].samples > 100
    (reason,) = calibration.noise.warnings
    assert "ran slower than it can in " in reason
    assert "try at another time" in reason


def test_an_operation_that_never_ran_on_a_free_processor_keeps_its_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latest = ""

    def run(name: str) -> None:
        nonlocal latest
        latest = name

    probed(monkeypatch, lambda: 2 * FREE if latest == "rare" else FREE)
    operations = {
        "step": Operation(lambda: run("step")),
        "rare": Operation(lambda: run("rare"), every=20),
    }
    calibration = calibrate(operations, 0.2, float("inf"))
    samples = {name: cost.samples for name, cost in calibration.costs.items()}
    assert samples["rare"] >= 2
    # Steps of the passes that it ended are left out, and those right after.
    assert samples["step"] < 20 * (samples["rare"] + 1) - samples["rare"]
    assert calibration.noise.disturbed_share == 1
    assert "ran slower than it can in 100%" in calibration.noise.warnings[0]


def test_a_probe_known_from_elsewhere_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = SharedProcessor(monkeypatch, shared=1.0)
    operations = {"step": Operation(lambda: processor.work(1.0))}
    assert calibrate(operations, 1.0, float("inf")).errors() == ()
    calibration = calibrate(operations, 1.0, float("inf"), known_probe=FREE)
    assert calibration.noise.disturbed_share == 1
    assert calibration.cpu_probe_seconds == 2 * FREE
    assert "in 100% of the measurements" in calibration.errors()[0]
    assert calibration.errors(known_probe=FREE)[1] == (
        "the processor took 2.00 times as long as in the fastest process, for the same work"
    )


def test_what_makes_no_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="no operation to calibrate"):
        calibrate({}, 0.001, 0.05)
    with pytest.raises(ValueError, match="'step' cannot run every 0 passes"):
        calibrate({"step": Operation(lambda: None, every=0)}, 0.001, 0.05)
    for none in (0.0, float("nan")):
        with pytest.raises(ValueError, match=f"takes a time above zero, not {none}"):
            calibrate({"step": Operation(lambda: None)}, none, 0.05)


def test_what_disturbed_it_is_kept() -> None:
    calibration = calibrate({"step": Operation(lambda: time.sleep(1e-4))}, 0.01, float("inf"))
    assert calibration.noise.window_seconds > 0.009
    loud = calibration.noise.model_copy(update={"warnings": ("a loud neighbour",)})
    assert calibration.model_copy(update={"noise": loud, "additivity_error": 0.01}).errors() == (
        "a loud neighbour",
    )
    assert calibration.model_copy(update={"noise": loud, "additivity_error": -0.1}).errors() == (
        "a loud neighbour",
        "its additivity error is -10.0%",
    )
