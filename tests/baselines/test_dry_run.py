"""What a comparison will take, said before it starts."""

import dataclasses
import gc
import io
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from baselines.cli import dry_run
from baselines.cli.dry_run import Estimate, estimate_table
from baselines.cli.memory import window_bytes
from baselines.experiment.calibration import Effort
from baselines.experiment.plan import Plan
from baselines.methods.names import NAMES, find
from baselines.methods.part import MethodError
from baselines.workloads import Workload, WorkloadError, digits, load
from tests.support.user_files import CHANGED, averager, write
from timing import Budget, this_machine
from timing.cli import commandline

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "own_workload.py"
BATCH, IN, HIDDEN, OUT = 32, 100, 50, 7
CALIBRATION_SECONDS = 60.0


def plan_of(workload: Workload, *methods: str, seconds: float = 10.0) -> Plan:
    found, rate = tuple(map(find, methods)), workload.learning_rate
    return Plan(workload, found, (0, 1), Budget(seconds), rate, evaluations=4)


def estimate(plan: Plan, jobs: int = 1) -> Estimate:
    return dry_run.estimate(plan, jobs=jobs, timed_seconds=0.05)


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration of a minute."""
    monkeypatch.setattr(dry_run, "effort", lambda *_: Effort(CALIBRATION_SECONDS, 5))


@pytest.fixture
def counted() -> Workload:
    """A network whose every tensor can be counted by hand."""

    def batches(seed: int, start: int = 0):
        while True:
            draws = torch.Generator().manual_seed(1000 * seed + start)
            yield (
                torch.rand(BATCH, IN, generator=draws),
                torch.randint(OUT, (BATCH,), generator=draws),
            )
            start += 1

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model(torch.ones(1, IN)).square().sum())

    return dataclasses.replace(
        load(str(EXAMPLE)),
        name="counted",
        make_model=lambda: nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT)),
        batches=batches,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        evaluate=evaluate,
    )


def test_every_part_of_the_memory_is_counted(counted: Workload) -> None:
    found = estimate(plan_of(counted, "lawa(k=3)")).memory
    weights = 4 * ((IN + 1) * HIDDEN + (HIDDEN + 1) * OUT)
    assert found.parameters == found.gradients == weights
    # AdamW: two moments, and a step count in float32 for each of four parameters.
    assert found.optimizer == 2 * weights + 4 * 4
    # Saved: the batch, the hidden layer after its ReLU, log-probabilities, targets, and the total
    # weight of the targets.
    assert found.activations == BATCH * (4 * IN + 4 * HIDDEN + 4 * OUT + 8) + 4
    # Three snapshots, and the live weights kept aside while the average is read; each tensor's
    # snapshots are filled up to rows of the same length.
    assert 4 * weights <= found.windows < 4.5 * weights
    parts = found.parameters + found.gradients + found.optimizer + found.activations
    assert found.needed == parts + found.windows


@pytest.mark.slow
def test_windows_of_methods_that_follow_one_training_add_up() -> None:
    plan = plan_of(digits.load(), *NAMES)
    model = plan.workload.make_model()
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

    def copies(*methods: str) -> float:
        return window_bytes([plan.method(name) for name in methods], plan, model) / weights

    alone = {name: copies(name) for name in ("constant", "lawa", "ema", "swa")}
    assert alone == {
        "constant": 0,
        "lawa": pytest.approx(5 + 1, rel=0.04),
        "ema": pytest.approx(1, rel=1e-3),
        "swa": pytest.approx(1, rel=1e-3),
    }
    assert copies(*alone) == pytest.approx(sum(alone.values()), rel=1e-3)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_what_a_process_had_frozen_stays_so_and_nothing_else(
    counted: Workload, is_frozen: bool
) -> None:
    plan = plan_of(counted, "lawa")
    gc.freeze() if is_frozen else gc.unfreeze()
    window_bytes(plan.methods, plan, counted.make_model())
    assert (gc.get_freeze_count() > 0) is is_frozen
    # As the other tests have it.
    gc.freeze()


def of_the_head(line: str) -> str:
    """An averager with a copy of the last layer."""
    return averager(f"""
    def __init__(self, model, optimizer):
        super().__init__(model, optimizer)
        self.copy = [p.detach().clone() for p in model[2].parameters()]
        {line}
""")


@pytest.mark.slow
@pytest.mark.parametrize("line", ["pass", "assert float(self.copy[0].sum()) != 0"])
def test_methods_see_the_model_that_they_would_train(
    counted: Workload, tmp_path: Path, line: str
) -> None:
    """Without its numbers, and with them where a method looks at them."""
    path = write(tmp_path, of_the_head(line))
    assert estimate(plan_of(counted, path)).memory.windows == 4 * (HIDDEN + 1) * OUT


@pytest.mark.slow
def test_a_method_that_does_not_fit_the_model_is_told_with_its_line(
    counted: Workload, tmp_path: Path
) -> None:
    path = write(tmp_path, of_the_head("self.head = model.transformer.head"))
    with pytest.raises(MethodError, match=r"mine\.py, line 14: AttributeError: 'Sequential' obj"):
        estimate(plan_of(counted, path))


def test_tied_weights_are_held_once(counted: Workload) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(IN, IN), nn.Linear(IN, IN), nn.Linear(IN, OUT))
        model[1].weight = model[0].weight
        return model

    plan = plan_of(dataclasses.replace(counted, make_model=tied), "ema")
    weights = 4 * (IN * IN + IN + IN + (IN + 1) * OUT)
    assert estimate(plan).memory.windows == pytest.approx(weights, abs=16)


@pytest.mark.slow
@pytest.mark.usefixtures("calibrated")
def test_steps_runs_and_time_follow_from_the_plan(counted: Workload) -> None:
    found = estimate(plan_of(counted, "constant", "decayed", "lawa"))
    assert found.errors == ()
    assert found.runs == 3 * 2
    # The constant rate and LAWA follow one training, the decayed rate has its own.
    assert found.trainings == 2 * 2
    assert found.rst_seconds_per_run == 10
    assert found.steps_per_run == int(10 / found.step_seconds)
    assert found.wall_seconds == pytest.approx(naive_wall_seconds(found))


def naive_wall_seconds(found: Estimate) -> float:
    """Two trainings and three methods for each of two seeds, evaluated at 4 points and the end."""
    of_seed = 2 * found.steps_per_run * found.step_seconds + 3 * 5 * found.evaluation_seconds
    return CALIBRATION_SECONDS + 2 * of_seed / min(found.memory.jobs, this_machine().logical_cores)


@pytest.mark.slow
@pytest.mark.usefixtures("calibrated")
def test_jobs_share_the_time_and_multiply_the_memory(counted: Workload) -> None:
    plan = plan_of(counted, "constant", "decayed", "lawa")
    one, two, many = (estimate(plan, jobs) for jobs in (1, 2, 1000))
    assert two.memory.needed == 2 * one.memory.needed
    assert two.wall_seconds == pytest.approx(naive_wall_seconds(two))
    assert many.wall_seconds == pytest.approx(naive_wall_seconds(many))


@pytest.mark.slow
def test_what_does_not_fit_is_an_error(counted: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = estimate(plan_of(counted, "ema")).memory.needed
    memory = psutil.virtual_memory()
    for free, errors in ((needed, 0), (needed - 1, 1)):
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda free=free: memory._replace(available=free)
        )
        found = estimate(plan_of(counted, "ema")).errors
        assert len(found) == errors
    assert "of memory are needed and" in found[0]


def test_in_a_container_its_own_memory_counts(
    counted: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timing.limits._memory_groups", lambda _: iter([(2**31, 2**30)]))
    assert estimate(plan_of(counted, "ema")).memory.available == 2**30


GREEDY = """
import sys
from pathlib import Path
import psutil
sys.path.insert(0, sys.argv[1])
from timing import limits

# As in a container with 300 MiB more than this process has.
own = psutil.Process().memory_info().rss
limits._memory_groups = lambda _: iter([(own + 300 * 2**20, psutil.Process().memory_info().rss)])
from timing.cli import commandline
from baselines.cli.app import app
sys.argv = ["baselines", "compare", "--dry-run", "--workload", sys.argv[2], "--methods", "lawa"]
commandline.run(app)
"""


@pytest.mark.slow
def test_in_a_container_it_fails_before_it_would_be_killed(tmp_path: Path) -> None:
    change = (
        "make_model=lambda: torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in [0] * 40))"
    )
    path = write(tmp_path, CHANGED.format(example=str(EXAMPLE), change=change))
    command = [sys.executable, "-c", GREEDY, str(EXAMPLE.parent.parent), path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "one training step of diabetes does not fit into the memory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_step_that_cannot_be_allocated_is_one_line(counted: Workload) -> None:
    huge = dataclasses.replace(
        counted, loss=lambda model, batch: model(batch[0]).sum() * torch.empty(2**50).sum()
    )
    with pytest.raises(WorkloadError, match="of counted does not fit into the memory") as raised:
        estimate(plan_of(huge, "ema"))
    assert "\n" not in str(raised.value)


def test_an_error_of_the_workload_is_not_taken_for_a_lack_of_memory(counted: Workload) -> None:
    broken = dataclasses.replace(counted, loss=lambda model, batch: model(batch[1]))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        estimate(plan_of(broken, "ema"))


@pytest.mark.slow
def test_a_budget_below_a_step_and_a_breach_of_the_contract_are_errors(
    counted: Workload,
) -> None:
    plan = plan_of(counted, "ema", seconds=1e-9)
    (error,) = estimate(plan).errors
    assert error.startswith("a budget of 1e-09 s does not pay for one step")
    deaf = dataclasses.replace(counted, batches=lambda seed, start=0: counted.batches(seed))
    (error,) = estimate(plan_of(deaf, "ema")).errors
    assert error.startswith("batches: batches(0, 2) does not begin")


def test_the_test_part_is_not_read(counted: Workload) -> None:
    def refuse(model: nn.Module) -> float:
        raise AssertionError("read")

    estimate(plan_of(dataclasses.replace(counted, evaluate_test=refuse), "ema"))


def test_the_table_has_a_line_for_each_number(counted: Workload) -> None:
    plan = plan_of(counted, "ema", "lawa")
    console = Console(file=io.StringIO(), width=100)
    console.print(estimate_table(plan, estimate(plan)))
    shown = console.file.getvalue()
    for text in ("dry run: counted", "21.1 KiB", "42.3 KiB", "4 from 2 trainings", "10 s", "free"):
        assert text in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--workload", str(EXAMPLE)), 0, "without --dry-run it starts"),
        (("--workload", str(EXAMPLE), "--budget", "0.000001s"), 1, "PROBLEM: a budget of 1e-06 s"),
    ],
)
def test_the_command_says_it_and_trains_nothing(
    options: tuple[str, ...],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from baselines.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["baselines", "compare", "--dry-run", *options])
    with pytest.raises(SystemExit) as stop:
        commandline.run(app)
    assert (stop.value.code or 0) == status
    shown = capsys.readouterr().out
    assert "dry run: diabetes" in shown
    assert said in shown
    assert list(tmp_path.iterdir()) == []
