"""Trained under torchrun: as one process with batches as large, and charged for every rank."""

import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from baselines.experiment.kept import read_comparison
from baselines.training.results import TrainingResult
from tests.support.kept_comparison import PROFILE
from tests.support.ranks_worker import WITHOUT_BATCHNORM, follow
from tests.support.torchrun import ROOT, torchrun
from tests.support.trainings import COSTS

RANKS = 2
RESULT = TypeAdapter(TrainingResult)
WORKER = str(ROOT / "tests" / "support" / "ranks_worker.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo"),
]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two ranks have left their results in."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(WORKER, str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def together(left: Path) -> list[TrainingResult]:
    return [
        RESULT.validate_json((left / f"rank-{rank}.json").read_bytes()) for rank in range(RANKS)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads in /proc")
def test_no_thread_of_the_ranks_outlives_their_training(left: Path) -> None:
    for rank in range(RANKS):
        names = (left / f"threads-{rank}.txt").read_text().split()
        assert names
        assert not [name for name in names if "gloo" in name]


def test_all_ranks_come_to_the_same(together: list[TrainingResult]) -> None:
    assert together[0].runs == together[1].runs


def test_ranks_are_one_process_with_larger_batches(together: list[TrainingResult]) -> None:
    def pairs(seed, start=0):
        batches = WITHOUT_BATCHNORM.batches(seed, start * RANKS)
        while True:
            several = list(itertools.islice(batches, RANKS))
            yield tuple(torch.cat(parts) for parts in zip(*several, strict=True))

    # What one of its steps costs is what both ranks spent on theirs.
    costs = {
        name: cost if name in ("average", "evaluate") else RANKS * cost
        for name, cost in COSTS.items()
    }
    naive = follow(dataclasses.replace(WITHOUT_BATCHNORM, batches=pairs), 1.0, costs)
    for mine, theirs in zip(together[0].runs, naive.runs, strict=True):
        assert mine.method == theirs.method
        for one, other in zip(mine.points, theirs.points, strict=True):
            assert one.step == other.step
            assert one.rst_seconds == pytest.approx(other.rst_seconds, rel=1e-12)
            assert one.value == pytest.approx(other.value, rel=1e-4)
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert mine.test == pytest.approx(theirs.test, rel=1e-4)


def test_each_rank_is_charged(together: list[TrainingResult]) -> None:
    for run in together[0].runs:
        counts = run.counts
        assert counts["train_step"] == counts["load_data"] == RANKS * run.steps
        if run.method == "lawa":
            assert counts["collect"] == RANKS * (run.steps // 2)
        if run.method == "ema":
            assert counts["ema_update"] == RANKS * run.steps
        # Rank 0 alone evaluates.
        assert counts["evaluate"] == len(run.points)
        assert run.rst_seconds <= 1.0
        assert 1.0 - run.rst_seconds < run.step_seconds


def test_what_one_rank_alone_has_run_is_charged_on_all(tmp_path: Path) -> None:
    """Else the ranks' accounts would part, and one end before the other."""
    done = torchrun(WORKER, str(tmp_path), "uneven")
    assert done.returncode == 0, done.stderr
    results = [RESULT.validate_json(path.read_bytes()) for path in tmp_path.glob("rank-*.json")]
    assert len(results) == RANKS
    assert results[0].runs == results[1].runs
    (run,) = results[0].runs
    assert run.failure is None
    assert run.counts["score"] == run.steps // 3 > 5
    assert run.counts["train_step"] == RANKS * run.steps
    assert run.rst_seconds == pytest.approx(
        RANKS * run.steps * COSTS["train_step"] + run.counts["score"] * 0.003
    )


def test_killed_and_started_again_they_end_as_undisturbed(
    tmp_path: Path, together: list[TrainingResult]
) -> None:
    script = WORKER
    killed = torchrun(script, str(tmp_path), "17")
    assert killed.returncode
    assert list(tmp_path.glob("step-*.pt"))
    done = torchrun(script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert RESULT.validate_json((tmp_path / "rank-0.json").read_bytes()).runs == together[0].runs


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = PROFILE.model_copy(update={"workload": {**PROFILE.workload, "k": 5}})
    path.write_text(profile.model_dump_json())
    options = [
        "--workload",
        "digits",
        "--budget",
        "0.6s",
        "--seeds",
        "1",
        "--methods",
        "constant,lawa",
        "--read",
        "int4",
    ]
    done = torchrun(
        *("-m", "baselines", "compare", *options, "--reference", str(path), "--no-publish"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    # One of the ranks prints, and one table.
    assert done.stdout.count("RST by policy, means over seeds") == 1
    (folder,) = (tmp_path / "lawa-runs").glob("digits-*")
    # Rank 0 rounds, and says once what.
    assert len(re.findall(r"^Read as int4: \d", done.stdout, re.MULTILINE)) == 1
    (run, _) = read_comparison(folder).runs
    assert all(point.read.keys() == {"int4"} for point in run.points)
    assert run.counts["train_step"] == RANKS * run.steps
    assert len(json.loads((folder / "0.6s" / "comparison.json").read_text())["seeds"]) == 1
