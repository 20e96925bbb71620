"""A metric of which higher is better is judged as its negation is, wherever values are compared."""

import base64
import dataclasses
import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baselines.analysis import ablation, html_report, report, score
from baselines.analysis.heat_map import heat_map
from baselines.analysis.tables import rows
from baselines.experiment.ablation import WindowConfig, methods_of
from baselines.experiment.comparison import Comparison, compare
from baselines.experiment.kept import Kept, read_comparison
from baselines.experiment.plan import Plan
from baselines.experiment.tuning import tune, winners
from baselines.methods.method import Method
from baselines.methods.names import find
from baselines.tracking import said, saved_view
from baselines.training.results import TrainingResult
from baselines.workloads.base import Workload
from tests.support import comparisons
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS, WORKLOAD
from timing import Budget

METHODS = tuple(map(find, ("constant", "decayed", "lawa", "decayed@50%")))
Measured = tuple[list[float], str | None]
HIGHER, LOWER = "accuracy", "negative accuracy"


def workload_of(metric: str, sign: float = 1.0) -> Workload:
    """Digits by its accuracy times a sign."""

    def turned(evaluate: Callable[[nn.Module], float]) -> Callable[[nn.Module], float]:
        # From 1000 to 2000, so that no difference looks like a value.
        return lambda model: sign * 1000 * (1 + math.exp(-evaluate(model)))

    return dataclasses.replace(
        WORKLOAD,
        metric=metric,
        evaluate=turned(WORKLOAD.evaluate),
        evaluate_test=turned(WORKLOAD.evaluate_test),
        higher_is_better=metric == HIGHER,
    )


ACCURACY, NEGATION = workload_of(HIGHER), workload_of(LOWER, -1.0)


def twin(made: Comparison) -> Comparison:
    """The same, had its metric been the negation."""
    trainings = tuple(
        dataclasses.replace(
            training,
            runs=tuple(
                dataclasses.replace(
                    run,
                    test=-run.test if math.isfinite(run.test) else run.test,
                    points=tuple(
                        dataclasses.replace(point, value=-point.value) for point in run.points
                    ),
                )
                for run in training.runs
            ),
        )
        for training in made.trainings
    )
    plan = dataclasses.replace(made.plan, workload=NEGATION)
    return Comparison(plan, made.profile, trainings)


def unsigned(text: str) -> str:
    """A report of the negation, as one of the accuracy."""
    text = text.replace("lower is better", "higher is better").replace(LOWER, HIGHER)
    return re.sub(r"-(\d{4}\.\d{4})", r"\1", text)


def without_time(text: str) -> str:
    """A report without what its trainings took here."""
    text = re.sub(r"- Measured seconds.*?(?=\n###)", "", text, flags=re.DOTALL)
    return re.sub(r"### Measured here.*?(?=\n_Budget)", "", text, flags=re.DOTALL)


accuracies = st.integers(8 * 2000, 8 * 2099).map(lambda eighths: eighths / 8)
# Of one run; one in ten fails.
measured = st.tuples(
    st.lists(accuracies, min_size=4, max_size=4),
    st.integers(0, 9).map(lambda one: None if one else "it failed"),
)


def curves_of(methods: int) -> st.SearchStrategy[list[list[Measured]]]:
    """What each method measured with each of one to four seeds."""
    return st.integers(1, 4).flatmap(
        lambda seeds: st.lists(
            st.lists(measured, min_size=seeds, max_size=seeds), min_size=methods, max_size=methods
        )
    )


def comparison(
    curves: list[list[Measured]], methods: Sequence[Method] = METHODS, *, read_test: bool = True
) -> Comparison:
    """A comparison as if its runs had measured these accuracies."""
    seeds = tuple(range(len(curves[0])))
    plan = Plan(ACCURACY, tuple(methods), seeds, Budget(4.0), 0.1, 4, read_test=read_test)
    profile = profile_of([{"train_step": 0.1}], plan.signature)
    runs = tuple(
        comparisons.run(method.name, seed, values, failure)
        for method, by_seed in zip(methods, curves, strict=True)
        for seed, (values, failure) in enumerate(by_seed)
    )
    return Comparison(plan, profile, (TrainingResult(runs, 4.0, 4.1, 0.0),))


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(curves_of(len(METHODS)))
def test_the_report_is_that_of_the_negation(curves: list[list[Measured]]) -> None:
    made = comparison(curves)
    other = twin(made)
    assert report.markdown(made) == unsigned(report.markdown(other))
    assert [row.rst_to_target for row in rows(made)] == [row.rst_to_target for row in rows(other)]
    assert score.table(score.scores([made]), [made]) == score.table(score.scores([other]), [other])


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(curves_of(len(METHODS)))
def test_all_is_that_of_a_naive_reading(curves: list[list[Measured]]) -> None:
    """What a person would say who looks at the accuracies, in plain loops."""
    made = comparison(curves)
    ends = {row.method: row.ends for row in rows(made)}
    whole = {name: sum(of) / len(of) for name, of in ends.items() if max(of) < math.inf}
    head, first, *_ = report.report_of(made).tables[0].rows
    assert head[0] == "rank"
    if whole:
        assert first[0] == "1"
        best = next(name for name, title in made.plan.titles.items() if title == first[1])
        assert whole[best] == pytest.approx(max(whole.values()))
    constant = made.of("constant")
    for row in rows(made):
        for run, target, reached in zip(
            made.of(row.method), constant, row.rst_to_target, strict=True
        ):
            first_at = math.inf
            for point in run.points:
                if target.failure is None and point.value >= target.points[-1].value:
                    first_at = min(first_at, point.rst_seconds)
            assert reached == first_at


@pytest.mark.slow
@settings(deadline=None, max_examples=5)
@given(curves_of(5))
def test_the_best_window_is_that_of_the_negation_and_the_darkest(
    curves: list[list[Measured]],
) -> None:
    windows = [WindowConfig(k, every) for every in (5, 20) for k in (1, 3)]
    made = comparison(curves, methods_of(windows), read_test=False)
    other = twin(made)
    assert report.markdown(made) == unsigned(report.markdown(other))
    found = {c: mean.mean for c, mean in ablation.means(made).items() if mean}
    if found and "Best" in (said_ := ablation.verdict(made)):
        assert found[next(c for c in found if f": {c} with" in said_)] == max(found.values())
        end, darkest = heat_map(made).axes[-1], min(-value for value in found.values())
        (image,) = end.images
        assert float(image.get_array().min()) == darkest
        boxed = [text for text in end.texts if text.get_bbox_patch()]
        assert {text.get_text() for text in boxed} == {f"{-darkest:.4f}"}


def test_tuning_takes_the_highest_and_a_failure_never() -> None:
    plan = Plan(ACCURACY, (find("constant"),), (0,), Budget(4.0), 0.1, 4, trials=4)
    values = (math.inf, 20.0, 30.0, -math.inf)

    def tried(number: int, value: float) -> Comparison:
        failure = None if math.isfinite(value) else "it failed"
        run = comparisons.run("constant", 0, [90.0, 90.0, 90.0, value], failure, 1.0)
        own = dataclasses.replace(plan, learning_rate=0.1 + number)
        return Comparison(own, profile_of([COSTS]), (TrainingResult((run,), 4.0, 4.1, 0.0),))

    found = winners(plan, [tried(*each) for each in enumerate(values)])
    assert found.methods[0].learning_rate == 2.1
    # Whatever a file says that was read again.
    assert [plan.workload.badness(v) for v in (math.nan, math.inf, -math.inf)] == [math.inf] * 3


@pytest.mark.slow
def test_trained_and_tuned_it_comes_to_the_same() -> None:
    def done(workload: Workload) -> tuple[Plan, Comparison]:
        names = ("constant", "decayed")
        plan = Plan(workload, tuple(map(find, names)), (0, 1), Budget(0.06), 0.05, 2, trials=3)
        profile = profile_of([COSTS], plan.signature)
        tuned = tune(plan, profile)
        return tuned, compare(tuned, profile)

    (plan, found), (negated_plan, negated) = map(done, (ACCURACY, NEGATION))
    assert plan.methods == negated_plan.methods
    best = {t.method: t for t in sorted(plan.tried, key=lambda t: t.value)}
    chosen = {method.name: method.learning_rate for method in plan.methods}
    assert chosen == {name: trial.learning_rate for name, trial in best.items()}
    one, other = (without_time(report.markdown(each)) for each in (found, negated))
    assert one == unsigned(other)


@pytest.mark.slow
def test_a_folder_keeps_it_and_every_page_says_it(tmp_path: Path) -> None:
    ends = ([2010.0, 2020.0, 2030.0], [2080.0, 2081.0, 2082.0])
    made = comparison([[([2000.0, end], None) for end in by_seed] for by_seed in ends], METHODS[:2])
    root = comparisons.kept(made, tmp_path)
    read = read_comparison(root)
    assert read.plan.workload.higher_is_better
    kept = Kept.read(root / "4s")
    page = html_report.page([(kept, read)])
    assert "higher is better" in page
    assert "lower is better" not in page
    assert '<tr class="best"><td>1</td><td>fully decayed rate</td>' in page
    assert said.parameters_of(read.plan)["metric"] == "accuracy, higher is better"
    _, view = saved_view.experiment_tag(read.plan, "key", "name", 0, None)
    assert _state(view)["orderByAsc"] is False


def _state(view: str) -> dict[str, object]:
    packed = json.loads(view)["state"].removeprefix("deflate;")
    state: dict[str, object] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        *(("accuracy", False), ("mAP", False), ("mean episode return", False)),
        *(("error rate", True), ("nats per byte", True), ("1 - accuracy", True)),
        *(("negative reward", True), ("perplexity", True)),
    ],
)
def test_a_name_that_says_the_contrary_is_refused(metric: str, higher: bool) -> None:
    with pytest.raises(ValueError, match="says the contrary") as raised:
        dataclasses.replace(WORKLOAD, metric=metric, higher_is_better=higher)
    assert "\n" not in str(raised.value)
    assert repr(metric) in str(raised.value)
    taken = dataclasses.replace(WORKLOAD, metric=metric, higher_is_better=not higher)
    assert taken.better == ("lower" if higher else "higher")


@pytest.mark.parametrize("metric", ["score", "1 - error rate", "negative loss", "accuracy gap"])
@pytest.mark.parametrize("higher", [True, False])
def test_a_name_that_says_nothing_or_both_is_taken_either_way(metric: str, higher: bool) -> None:
    dataclasses.replace(WORKLOAD, metric=metric, higher_is_better=higher)
