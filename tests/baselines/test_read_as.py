"""Weights that are read rounded: what each reading is of, and that nothing else notices."""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor, nn

from baselines.cli import dry_run
from baselines.cli.duration import phases_of, training_of
from baselines.cli.read_as import parsed, try_reading
from baselines.experiment import store, tuning
from baselines.experiment.comparison import compare
from baselines.experiment.kept import read_comparison
from baselines.experiment.manifest import MANIFEST, FolderError, Manifest
from baselines.experiment.plan import Plan
from baselines.experiment.resume import resume
from baselines.training.checkpoint import Checkpoints
from baselines.training.events import EVENTS
from baselines.training.loop import train
from baselines.training.readings import read_rounded
from baselines.training.results import Point, TrainingResult, read_points
from baselines.training.rounding import parse, rounded
from baselines.training.training import Training
from baselines.workloads.base import Workload
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS, RATE, WORKLOAD, method_of
from timing import Budget
from timing.tracebacks import in_one_line

METHODS = ("constant", "lawa")
READ = ("int8", "int4", "int2g32")
BUDGET = Budget(0.25)
Trained = tuple[TrainingResult, dict[str, nn.Module]]


def trained(
    read: Sequence[str] = READ, *, workload: Workload = WORKLOAD, folder: Path | None = None
) -> Trained:
    """A training, and a copy of the model that each method ends with."""
    ends: dict[str, nn.Module] = {}

    def keep(name: str, model: nn.Module, _: Tensor) -> None:
        ends[name] = copy.deepcopy(model)

    result = train(
        *(workload, [method_of(name) for name in METHODS], 0, BUDGET, COSTS, RATE, 3),
        checkpoints=Checkpoints(folder, seconds=0.0) if folder else None,
        on_end=keep,
        roundings=tuple(map(parse, read)),
    )
    return result, ends


def plan_of(*read: str, methods: Sequence[str] = ("constant", "lawa"), seeds: int = 1) -> Plan:
    found = tuple(map(method_of, methods))
    plan = Plan(WORKLOAD, found, tuple(range(seeds)), BUDGET, RATE, 3)
    return dataclasses.replace(plan, read=("float", *read))


def without(result: TrainingResult) -> list[object]:
    """All of it that a training without readings has too, but seconds by the clock."""
    return [
        dataclasses.replace(
            run,
            points=tuple(dataclasses.replace(point, read={}) for point in run.points),
            read_test={},
            rounded={},
        )
        for run in result.runs
    ]


def states(models: dict[str, nn.Module]) -> list[bytes]:
    return [
        tensor.numpy().tobytes()
        for model in models.values()
        for tensor in model.state_dict().values()
    ]


@pytest.fixture(scope="module")
def undisturbed() -> Trained:
    return trained()


def test_a_training_does_not_notice_how_its_weights_are_read(undisturbed: Trained) -> None:
    (plain, plain_ends), (read, read_ends) = trained(()), undisturbed
    assert without(read) == list(plain.runs)
    assert states(read_ends) == states(plain_ends)
    assert plain.rst_seconds == read.rst_seconds
    assert {*read.runs[0].points[0].read} == {*READ}


def test_each_reading_is_of_a_rounded_copy_of_what_the_method_reports(undisturbed: Trained) -> None:
    result, ends = undisturbed
    for run in result.runs:
        end = ends[run.method]
        assert WORKLOAD.evaluate(end) == run.final
        for name in READ:
            copy = rounded(end, parse(name))
            assert run.final_as(name) == run.points[-1].read[name] == WORKLOAD.evaluate(copy)
            assert run.test_as(name) == run.read_test[name] == WORKLOAD.evaluate_test(copy)
            # By hand, over the parameters that differ.
            pairs = zip(end.parameters(), copy.parameters(), strict=True)
            apart = [(x.detach().double(), y.detach().double()) for x, y in pairs if x.dim() > 1]
            off = math.fsum(float((x - y).square().sum()) for x, y in apart)
            whole = math.fsum(float(x.square().sum()) for x, _ in apart)
            assert run.rounded[name].relative_error == pytest.approx(math.sqrt(off / whole))
    # Each is another, or it would not matter what is read.
    assert all(len({run.final_as(name) for name in ("float", *READ)}) == 4 for run in result.runs)


@pytest.mark.slow
def test_a_training_that_was_cut_off_ends_with_the_same_readings(
    undisturbed: Trained, tmp_path: Path
) -> None:
    calls = count(1)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        if next(calls) == 15:
            raise KeyboardInterrupt
        return WORKLOAD.loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        trained(workload=dataclasses.replace(WORKLOAD, loss=loss), folder=tmp_path)
    assert [*tmp_path.glob("step-*.pt")]
    resumed, _ = trained(folder=tmp_path)
    assert resumed.runs == undisturbed[0].runs


def unreadable(limit: float) -> Workload:
    """Digits, whose metric is no number of weights that were rounded to few values."""

    def evaluate(model: nn.Module) -> float:
        weight = max(model.parameters(), key=Tensor.numel)
        few = len(weight.unique()) < limit
        return math.nan if few else WORKLOAD.evaluate(model)

    return dataclasses.replace(WORKLOAD, evaluate=evaluate, evaluate_test=evaluate)


@pytest.mark.slow
def test_a_reading_that_is_not_finite_is_a_value_and_fails_no_run(tmp_path: Path) -> None:
    workload = unreadable(400)
    result, _ = trained(workload=workload, folder=tmp_path)
    for run in result.runs:
        assert run.failure is None
        assert math.isfinite(run.final_as("int8"))
        assert {point.read["int2g32"] for point in run.points} == {math.inf}
        assert math.isnan(run.final_as("int2g32"))
        assert math.isnan(run.test_as("int2g32"))
    # A checkpoint takes it too.
    assert trained(workload=workload, folder=tmp_path)[0].runs == result.runs


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from() -> None:
    def begin() -> Training:
        methods = [method_of("constant")]
        return Training(WORKLOAD, methods, 0, BUDGET, COSTS, RATE, "algoperf")

    first = begin()
    first.next_step()
    first.runs[0].points.append(Point(1, 0.01, 2.0, 2.0, RATE, "live", 1))
    state = first.state_dict()
    earlier = state["runs"]["constant"]
    for name in ("read_test", "rounded"):
        del earlier[name]
    del earlier["points"][0]["read"]
    second = begin()
    second.load_state_dict(state)
    assert second.runs[0].points == first.runs[0].points
    with pytest.raises(ValueError, match="lacks a field"):
        read_points([{**earlier["points"][0], "read": {}, "more": 1}])


def test_a_plan_that_reads_float_alone_is_what_it_was(tmp_path: Path) -> None:
    plain = plan_of()
    written = json.loads(store.write_or_verify(tmp_path / "1s", plain).model_dump_json())
    assert "read_as" not in written
    assert "read" not in Manifest.of(plain).fingerprint.replace("read_test", "").replace(
        "threads", ""
    )
    rounding = plan_of("int4")
    assert Manifest.of(rounding).fingerprint != Manifest.of(plain).fingerprint
    assert store.root_of(tmp_path, [rounding]) != store.root_of(tmp_path, [plain])
    with pytest.raises(FolderError, match="holds another comparison"):
        store.write_or_verify(tmp_path / "1s", rounding)
    store.write_or_verify(tmp_path / "2s", rounding)
    assert Manifest.read(tmp_path / "2s").plan(WORKLOAD).read == ("float", "int4")


def test_readings_have_one_order_and_each_is_named_once() -> None:
    assert plan_of("int3", "int8", "int4g32", "int4").read == (
        *("float", "int8", "int4", "int4g32", "int3"),
    )
    with pytest.raises(ValueError, match="int4 twice"):
        plan_of("int4", "int4")
    # Trials choose by float alone.
    (trial,) = tuning.trials(plan_of("int4"), 1)
    assert trial.read == ("float",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int1", "give 2 to"),
        ("int4g0", "at least 1"),
        ("half", "'half' is no reading"),
        ("int4,int4", "int4 twice"),
        ("", "is no reading"),
    ],
)
def test_what_is_no_reading_is_a_usage_error_in_a_line(text: str, expected: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"--read: .*{expected}") as raised:
        parsed(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: nn.LayerNorm(8), "no parameter of two or more dimensions"),
        (lambda: nn.Linear(8, 4).half(), "float16"),
        (lambda: nn.Linear(8, 4).bfloat16(), "bfloat16"),
        (lambda: nn.Linear(8, 4, dtype=torch.complex64), "complex64"),
    ],
)
def test_a_model_that_cannot_be_rounded_is_refused_before_it_trains(model, expected: str) -> None:
    plan = dataclasses.replace(
        plan_of("int4"), workload=dataclasses.replace(WORKLOAD, make_model=model)
    )
    with pytest.raises(typer.BadParameter, match=f"--read: .*{expected}") as raised:
        try_reading(plan)
    assert "\n" not in str(raised.value)


def test_what_is_rounded_is_said_and_draws_nothing() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    (line,) = try_reading(plan_of("int4"))
    assert line.startswith("Read as int4: ")
    assert torch.equal(state, torch.get_rng_state())
    assert try_reading(plan_of()) == []


def test_readings_take_time_and_it_is_expected() -> None:
    plain, read = plan_of(seeds=2), plan_of("int8", "int4", seeds=2)
    profile = profile_of([COSTS], plain.signature)
    more, least = (phases_of([plan], profile, 1)[training_of(plan)] for plan in (read, plain))
    # Two methods with three evaluations and that of the test part, of two seeds, read in two ways.
    evaluations = 2 * 4 * 2 * 2
    assert more - least == pytest.approx(1.2 * evaluations * COSTS["evaluate"])


@pytest.mark.slow
def test_a_folder_has_the_readings_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    plan = plan_of("int8", "int2")
    profile = profile_of([COSTS], plan.signature)
    store.write_profile(tmp_path, profile)
    inside = store.budget_folder(tmp_path, plan)
    done = resume(plan, profile, inside)
    assert done.runs == compare(plan, profile).runs
    assert read_comparison(tmp_path).runs == done.runs
    again = dataclasses.replace(
        plan, workload=dataclasses.replace(WORKLOAD, batches=lambda *_: pytest.fail("trained"))
    )
    assert resume(again, profile, inside).runs == done.runs
    manifest = inside / MANIFEST
    manifest.write_text(manifest.read_text().replace('"int2"', '"int3"'))
    with pytest.raises(FolderError, match="read as int2, int8, and int3, int8 is asked for"):
        read_comparison(tmp_path)
    (log,) = inside.glob(f"*/{EVENTS}")
    log.write_text(log.read_text().replace('"int2": ', '"int3": ', 1))
    with pytest.raises(FolderError, match="is damaged"):
        read_comparison(tmp_path)


@pytest.mark.slow
def test_a_dry_run_counts_the_copies_and_their_time() -> None:
    plain, read = plan_of(), plan_of("int8", "int4")
    profile = profile_of([COSTS], plain.signature)
    without_, found = (dry_run.estimate(plan, profile, 1, 0.05) for plan in (plain, read))
    assert (without_.memory.rounded, without_.rounded_seconds) == (0, 0.0)
    # One at a time.
    assert found.memory.rounded == found.memory.parameters
    assert found.memory.needed == without_.memory.needed + found.memory.parameters
    # One training of one seed; two methods with three evaluations and that of the test part.
    training = found.steps_per_run * found.step_seconds
    evaluations = 2 * 4 * (found.evaluation_seconds + found.rounded_seconds)
    assert found.rounded_seconds > 0
    assert found.wall_seconds == pytest.approx(training + evaluations)


def test_an_error_names_the_reading() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        read_rounded(nn.Linear(2, 2), [parse("int4")], lambda _: 1 / 0, torch.device("cpu"))
    said = in_one_line(raised.value)
    assert said.endswith("ZeroDivisionError: division by zero (read as int4)")
