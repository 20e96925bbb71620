"""Workloads that users bring as a Python file."""

import dataclasses
import itertools
import re
import shutil
from pathlib import Path

import pytest
import torch

from baselines.workloads import NAMES, Workload, WorkloadError, load
from baselines.workloads.check import errors
from tests.support.commands import command, made_up
from tests.support.user_files import CHANGED, EXAMPLE, assert_said_in_one_line, write


def test_the_example_keeps_the_contract_and_learns() -> None:
    workload = load(str(EXAMPLE))
    assert errors(workload) == []
    torch.manual_seed(0)
    model = workload.make_model().train()
    optimizer = workload.make_optimizer(model, workload.learning_rate)
    before = workload.evaluate(model), workload.evaluate_test(model)
    for batch in itertools.islice(workload.batches(0), 200):
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
    assert workload.evaluate(model) < 0.8 * before[0]
    assert workload.evaluate_test(model) < 0.8 * before[1]


def test_a_start_is_the_same_as_skipping() -> None:
    workload = load(str(EXAMPLE))
    naive = next(itertools.islice(workload.batches(1), 40, None))
    assert all(map(torch.equal, next(workload.batches(1, 40)), naive))


def test_another_text_of_the_file_is_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    shutil.copy(EXAMPLE, path)
    first = load(str(path)).data
    assert first["file"] == "own.py"
    assert first["sha256"] == load(str(EXAMPLE)).data["sha256"]
    path.write_text(path.read_text().replace("64", "32"))
    assert load(str(path)).data["file_sha256"] != first["file_sha256"]
    assert len(list(load(str(path)).make_model().parameters())[1]) == 32


def test_data_is_handed_to_a_file_that_takes_it(tmp_path: Path) -> None:
    change = "data={'sha256': 64 * '0', 'source': data and data.name}"
    text = CHANGED.format(example=str(EXAMPLE), change=change)
    needing = write(tmp_path, text.replace("load():", "load(data: pathlib.Path):"))
    assert load(needing, Path("folder")).data["source"] == "folder"
    with pytest.raises(WorkloadError, match=r"workload .*mine.py needs --data PATH"):
        load(needing)
    optional = write(tmp_path, text.replace("load():", "load(data=None):"))
    assert load(optional).data["source"] is None
    assert load(optional, Path("folder")).data["source"] == "folder"


def test_classes_of_a_file_know_their_module(tmp_path: Path) -> None:
    """Dataclasses and pickle look a class's module up among the imported ones."""
    body = CHANGED.format(example=str(EXAMPLE), change="")
    extra = """
from __future__ import annotations
import dataclasses, pickle
@dataclasses.dataclass
class Size:
    width: int
assert pickle.loads(pickle.dumps(Size(3))) == Size(3)
"""
    assert isinstance(load(write(tmp_path, extra + body)), Workload)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", r"mine.py defines no function `load`, which must return a Workload"),
        ("load = 1", r"mine.py defines no function `load`"),
        (
            "def load():\n    return {}",
            r"load\(\) of .*mine.py must return a baselines.workloads.Workload; it returned a dict",
        ),
        ("import nothing_like_it", r"mine.py, line 1: ModuleNotFoundError: No module named 'noth"),
        ("def load():\n    return 1 / 0", r"mine.py, line 2: ZeroDivisionError: division by zero"),
        ("def load(:", r"mine.py, line 1: invalid syntax"),
        ("def load(size):\n    pass", r"mine.py: load must take no argument but `data`; .*size"),
        ("def load():\n    raise ValueError('a\\nb')", r"mine.py, line 2: ValueError: a b$"),
        ("import sys\nsys.exit(0)", r"mine.py, line 2: it ends the process \(sys.exit\): raise an"),
        ("def load():\n    raise BaseException('x')", r"mine.py, line 2: BaseException: x$"),
        ("def load():\n    load()", r"mine.py, line 2: RecursionError: maximum recursion depth"),
        ("import broken_helper", r"broken_helper.py, line 2: invalid syntax"),
        ("x = '\0'", r"mine.py: .*null bytes"),
        (
            "class Odd(Exception):\n    def __str__(self):\n        return 1\nraise Odd",
            r"mine.py, line 4: Odd: \(its message cannot be read\)",
        ),
        (
            "import baselines.workloads\ndef load():\n    return baselines.workloads.Workload()",
            r"mine.py, line 3: TypeError: .*missing",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_helper.py").write_text("x = 1\ndef (:")
    path = write(tmp_path, text)
    assert_said_in_one_line(lambda: load(path), WorkloadError, said)


def test_a_file_is_named_as_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "def load():\n    return 1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkloadError, match=r"^mine\.py, line 2: ZeroDivisionError"):
        load("mine.py")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(WorkloadError, match=r"folder\.py is no file"):
        load("folder.py")


def with_metric(metric: str) -> Workload:
    return dataclasses.replace(load(str(EXAMPLE)), metric=metric)


@pytest.mark.parametrize(
    "metric",
    [
        *("accuracy", "Accuracy (%)", "val_acc", "testAccuracy", "acc@1", "digits - accuracy"),
        *("top1", "Top-1", "top 5 accuracy", "top-1-accuracy", "F1", "macro f1-score", "ROC AUC"),
        *("BLEU-4", "mAP", "mAP50@0.5", "R2", "R^2", "R²", "r-squared", "PSNR in dB", "SSIM"),
        *("reward", "mean episode return", "log-likelihood", "ROUGE-L", "recall"),
    ],
)
def test_a_metric_of_which_more_is_better_is_refused(metric: str) -> None:
    with pytest.raises(
        ValueError, match=r"higher_is_better=True, .* 1 - accuracy as 'error rate'"
    ) as raised:
        with_metric(metric)
    assert repr(metric) in str(raised.value)


@pytest.mark.parametrize(
    "metric",
    [
        *("error rate", "top-1 error rate", "loss", "nats per byte", "squared error", "perplexity"),
        *("1 - accuracy", "1-accuracy", "1 \u2212 F1", "100% - mAP", "one minus recall"),
        *("-accuracy", "cost (-reward)", "negative return", "negative log-likelihood", "NLL"),
        *("accuracy gap", "inaccuracy", "mapping error", "seconds", "WER", "MAPE", "remap", ""),
    ],
)
def test_a_metric_of_which_less_is_better_is_taken(metric: str) -> None:
    assert with_metric(metric).metric == metric


def test_the_line_of_a_metric_that_is_refused_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, CHANGED.format(example=str(EXAMPLE), change="metric='accuracy'"))
    said = r"mine\.py, line 5: ValueError: workload diabetes has the metric 'accuracy'"
    assert_said_in_one_line(lambda: load(path), WorkloadError, said)


@pytest.mark.parametrize("name", ["learning_rate", "budget_seconds"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_a_rate_or_budget_that_is_none_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} of workload diabetes must be a positive number"):
        dataclasses.replace(load(str(EXAMPLE)), **{name: value})


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(WorkloadError, match=r"nowhere.py: No such file or directory"):
        load("nowhere.py")
    with pytest.raises(WorkloadError, match=r"'digit' is none of pydocs, digits, .* a .py file"):
        load("digit")
    with pytest.raises(WorkloadError, match=r"workload text needs --data PATH"):
        load("text")
    with pytest.raises(WorkloadError, match=r"workload digits takes no --data PATH; .* given x"):
        load("digits", Path("x"))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_that_of_a_workload(name: str, tmp_path: Path) -> None:
    """With data that are not there, each says so: it was found, and asked for its data."""
    if name in ("pydocs", "digits"):
        assert load(name).name == name
    else:
        with pytest.raises(WorkloadError, match=r"No such file or directory|torchvision is needed"):
            load(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("make_model=lambda: torch.nn.Linear(10, 1).requires_grad_(False)", "no parameter requi"),
        (
            "batches=lambda seed, start=0: good.batches(seed)",
            r"batches\(0, 2\) does not begin with the third",
        ),
        ("batches=lambda seed, start=0: good.batches(0, start)", "seeds 0 and 1 have the same"),
        (
            "batches=lambda seed, start=0: itertools.islice(good.batches(seed, start), 2)",
            "must be endless; there were 2",
        ),
        (
            "batches=lambda seed, start=0: ((torch.rand(4, 10), torch.rand(4)) for _ in [0] * 9)",
            "draw from torch's global random generator",
        ),
        ("loss=lambda model, batch: model(batch[0])", "loss: must be one finite number"),
        ("loss=lambda model, batch: good.loss(model, batch) / 0", "loss: must be one finite num"),
        ("loss=lambda model, batch: good.loss(model, batch).detach()", "loss: has no gradient"),
        ("evaluate=lambda model: float(torch.rand(()))", "evaluate: draws from torch's global"),
        ("evaluate=lambda model: model.eval() and 1.0", "evaluate: leaves the model in evaluation"),
        ("evaluate=lambda model: float('nan')", "evaluate: must return a finite float"),
        (
            "evaluate=lambda model: float(model[0].weight.detach().add_(1).sum())",
            "evaluate: changes the model's weights",
        ),
        (
            "make_model=lambda: torch.nn.Sequential("
            "torch.nn.BatchNorm1d(10), torch.nn.Linear(10, 1))",
            "bn_batches: a model with BatchNorm needs some",
        ),
        (
            "make_optimizer=lambda model, rate: torch.optim.SGD([torch.zeros(1)], lr=rate)",
            "the optimizer has none of the model's parameters",
        ),
    ],
)
def test_a_breach_of_the_contract_is_found(change: str, said: str, tmp_path: Path) -> None:
    workload = load(write(tmp_path, CHANGED.format(example=str(EXAMPLE), change=change)))
    assert re.search(said, "\n".join(errors(workload)))


def test_weights_drawn_elsewhere_are_found(tmp_path: Path) -> None:
    change = "make_model=lambda: [m := good.make_model(), m[0].weight.data.fill_(next(n))][0]"
    text = CHANGED.format(example=str(EXAMPLE), change=change) + "\nn = itertools.count()"
    found = errors(load(write(tmp_path, text)))
    assert any("the same seed of torch gave other weights" in line for line in found)


@pytest.mark.slow
def test_the_command_compares_on_it(tmp_path: Path) -> None:
    reference = made_up(tmp_path, str(EXAMPLE), None, k=5)
    options = "--seeds 2 --budget 0.2s --methods constant,lawa --no-publish --reference"
    done = command(tmp_path, "compare", "--workload", str(EXAMPLE), *options.split(), reference)
    assert done.returncode == 0, done.stderr
    assert "diabetes: 0.2 s of RST each" in done.stdout
    assert "LAWA of the constant rate" in done.stdout
