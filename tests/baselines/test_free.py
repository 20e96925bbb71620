"""What is free is charged to no run, said wherever a result is, and part of a comparison."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import typer
from matplotlib.figure import Figure

from baselines.analysis import html_report, plots, report, score
from baselines.analysis.charges import paid_once, totals
from baselines.cli import options
from baselines.experiment import store
from baselines.experiment.comparison import Comparison, compare
from baselines.experiment.kept import Kept, folders_of, read_comparison
from baselines.experiment.manifest import FolderError, Manifest
from baselines.experiment.plan import Plan, check
from baselines.methods.names import find
from baselines.methods.part import MethodError
from baselines.tracking import said
from baselines.training.loop import train
from baselines.training.results import Run
from baselines.training.training import Training
from baselines.workloads import text
from baselines.workloads.data.corpus import Corpus
from tests.support import comparisons
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS, RATE, WORKLOAD
from timing import Budget

SELECTION = {"score": 0.004, "score_by_id": 0.003}
PREPARATION = {"irreducible_step": 0.01, "irreducible_score": 0.0025}
ALL = {**COSTS, **SELECTION, **PREPARATION, "evaluate": 0.05}
UNCHARGED = {"load_data", "evaluate"}
BUDGET = Budget(0.6)


def plan_of(*methods: str, free: tuple[str, ...] = (), seeds: int = 1) -> Plan:
    found = tuple(map(find, methods))
    return Plan(WORKLOAD, found, tuple(range(seeds)), BUDGET, RATE, 2, free=free)


def run_of(method: str, *free: str) -> Run:
    found = find(method)
    (run,) = train(WORKLOAD, [found], 0, BUDGET, ALL, RATE, 2, free=free).runs
    assert run.failure is None
    return run


def seconds(run: Run, names: set[str]) -> float:
    """By hand: how often these ran, times what each costs."""
    return math.fsum(times * ALL[name] for name, times in run.counts.items() if name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "free"),
    [
        ("selective-backprop+decayed", ("score",)),
        ("rho-loss(epochs=0.5)+decayed", ("score_by_id", *PREPARATION)),
        ("lawa(k=2,every=2)", ("collect", "average")),
    ],
)
def test_what_is_free_is_counted_and_not_charged(method: str, free: tuple[str, ...]) -> None:
    run, charged = run_of(method, *free), run_of(method)
    assert {*free} <= run.counts.keys()
    assert run.rst_seconds == pytest.approx(seconds(run, ALL.keys() - UNCHARGED - {*free}))
    assert BUDGET.seconds - run.step_seconds - 1e-9 < run.rst_seconds <= BUDGET.seconds
    # The budget's clock runs slower, so that more is trained.
    assert run.counts["train_step"] > charged.counts["train_step"]
    lines = {line["operation"]: line["charged"] for line in run.account}
    assert {name for name, share in lines.items() if not share} == {*free, *UNCHARGED} & {*lines}
    assert run.totals["mlperf"] == pytest.approx(seconds(run, ALL.keys() - {*free}))


@pytest.mark.slow
@pytest.mark.parametrize(("charge", "share"), [("none", 0), ("shared:4", 0.25), ("full", 1)])
def test_all_three_totals_of_what_is_paid_once_are_shown(charge: str, share: float) -> None:
    name = f"rho-loss(epochs=0.5,il_charge={charge})+decayed"
    plan = dataclasses.replace(plan_of(name, "decayed", seeds=2))
    comparison = compare(plan, profile_of([ALL], plan.signature))
    (line,) = [row for row in paid_once(comparison) if row[0] != "method"]
    runs = comparison.of(plan.names[0])
    once = math.fsum(seconds(run, {*PREPARATION}) for run in runs) / 2
    rest = math.fsum(seconds(run, ALL.keys() - UNCHARGED - {*PREPARATION}) for run in runs) / 2
    shared = 4 if charge == "shared:4" else len(plan.seeds)
    wanted = [rest, rest + once / shared, rest + once]
    assert line[1:] == [
        f"{wanted[0]:.3f}",
        f"{wanted[1]:.3f} ({shared} runs)",
        f"{wanted[2]:.3f}",
    ]
    assert runs[0].rst_seconds == pytest.approx(
        seconds(runs[0], ALL.keys() - UNCHARGED - {*PREPARATION})
        + share * seconds(runs[0], {*PREPARATION})
    )
    assert "paid once" in report.markdown(comparison)


@pytest.mark.parametrize("wrong", ["half", "shared:0", "shared:", "shared:1.5", "shared:-3"])
def test_a_charge_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(MethodError, match="must be none, full, or shared:R for R runs"):
        find(f"rho-loss(il_charge={wrong})")


@pytest.mark.parametrize(
    ("methods", "free", "expected"),
    [
        (("constant",), ("scoer",), r"'scoer' cannot be free: .* have .*evaluate, .*train_step$"),
        (("constant", "lawa"), ("",), "'' cannot be free"),
        (("selective-backprop",), ("score", "score"), "named twice: score, score"),
        (("constant",), ("train_step",), r"every step of constant is free \(load_data, train_step"),
        # Else it would end once its averages have cost as much.
        (("lawa",), ("train_step",), "every step of lawa is free"),
        # Else it would not, once its preparation is paid.
        (("rho-loss",), ("score_by_id", "train_step"), "every step of rho-loss is free"),
        (("decayed", "selective-backprop"), ("train_step",), "every step of decayed is free"),
    ],
)
def test_what_cannot_be_free_is_refused_before_anything(
    methods: tuple[str, ...], free: tuple[str, ...], expected: str
) -> None:
    plan = plan_of(*methods, free=free)
    with pytest.raises(ValueError, match=expected) as raised:
        check(plan, profile_of([ALL], plan.signature))
    assert "\n" not in str(raised.value)
    # As every start of a comparison and --dry-run ask, before anything is measured.
    with pytest.raises(typer.BadParameter, match=f"--free: .*{expected}"):
        options.try_out(plan)


def test_a_training_that_would_not_end_does_not_begin() -> None:
    with pytest.raises(ValueError, match="would not end"):
        train(WORKLOAD, [find("constant")], 0, BUDGET, ALL, RATE, 2, free=["train_step"])


def test_selection_may_be_free_as_the_paper_has_it() -> None:
    options.try_out(plan_of("decayed", "selective-backprop", free=("score",)))
    options.try_out(plan_of("rho-loss", free=("score_by_id", *PREPARATION)))


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison whose averages are free, tuned."""
    drawn = comparisons.comparison(comparisons.CURVES)
    line = {"operation": "average", "times": 2, "seconds_each": 0.5, "seconds": 1.0, "charged": 0.0}
    trainings = tuple(
        dataclasses.replace(
            training,
            runs=tuple(dataclasses.replace(r, account=(*r.account, line)) for r in training.runs),
        )
        for training in drawn.trainings
    )
    return Comparison(dataclasses.replace(drawn.plan, free=("average",)), drawn.profile, trainings)


@pytest.mark.slow
def test_every_table_title_and_plot_says_it(free: Comparison, tmp_path: Path) -> None:
    found = report.report_of(free)
    assert found.headline[0].startswith("With average FREE: ")
    for titled in (found.title, *(table.title for table in (*found.tables, *found.details))):
        assert titled.endswith(", average FREE")
    assert "average FREE: charged to no run" in found.conditions
    for figure in plots.figures(free).values():
        assert isinstance(figure, Figure)
        assert figure.axes[0].get_title().endswith(", average FREE")
    root = comparisons.kept(free, tmp_path)
    kept = Kept.read(folders_of(root)[0])
    page = html_report.page([(kept, read_comparison(root))])
    assert page.count("average FREE") > 4
    assert said.name_of(kept.plan).endswith(", average FREE")
    assert said.parameters_of(kept.plan)["free"] == "average"
    assert "FREE" not in report.markdown(comparisons.comparison(comparisons.CURVES))


def test_the_totals_have_what_it_would_have_cost(free: Comparison) -> None:
    head, first, *_ = totals(free)
    assert head[-1] == "algoperf, nothing free, s"
    assert float(first[-1]) == pytest.approx(float(first[1]) + 1.0)


def test_it_is_another_comparison(free: Comparison, tmp_path: Path) -> None:
    charged = dataclasses.replace(free.plan, free=())
    assert Manifest.of(charged).fingerprint != Manifest.of(free.plan).fingerprint
    assert store.root_of(tmp_path, [charged]) != store.root_of(tmp_path, [free.plan])
    store.write_or_verify(tmp_path / "4s", free.plan)
    with pytest.raises(FolderError, match="holds another comparison"):
        store.write_or_verify(tmp_path / "4s", charged)
    with pytest.raises(ValueError, match="a score is under one --free"):
        score.scores(
            [
                free,
                Comparison(
                    dataclasses.replace(charged, budget=Budget(5.0)), free.profile, free.trainings
                ),
            ]
        )
    # In whatever order they were named.
    one, other = (dataclasses.replace(charged, free=order) for order in (("a", "b"), ("b", "a")))
    assert one.free == other.free


def test_a_checkpoint_of_other_charges_is_refused() -> None:
    def begin(*free: str) -> Training:
        method = [find("selective-backprop")]
        return Training(WORKLOAD, method, 0, BUDGET, ALL, RATE, "algoperf", free)

    first = begin("score")
    first.next_step()
    with pytest.raises(ValueError, match=re.escape("shares {'score': 0.0}, this one has {}")):
        begin().load_state_dict(first.state_dict())


def test_a_step_that_updates_and_is_free_ends_its_training() -> None:
    # As of a model that grows: what it runs in the end is free, and what it runs before is not.
    words = text.workload(Corpus.split(bytes(range(256)) * 400, "bytes"), "bytes")
    costs = {**ALL, **{f"train_step_{kept}_of_2": 0.01 for kept in range(3)}}
    free = ["train_step_2_of_2"]
    method = [find("layer-dropping")]
    result = train(words, method, 0, BUDGET, costs, RATE, 2, free=free)
    assert "that updates weights is free" in str(result.error)
    assert "leave one of them charged" in str(result.runs[0].failure)
