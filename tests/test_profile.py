"""Reference profiles: read back as written, and refused where they are wrong."""

import errno
import json
import os
from pathlib import Path

import pytest

from timing import Cost, Profile, ProfileError, this_machine

COST = Cost(median_seconds=0.01, spread_seconds=0.001, samples=100)


def profile() -> Profile:
    return Profile(
        machine=this_machine(),
        workload={"workload": "digits", "batch": 64, "k": 5},
        costs={"train_step": COST, "evaluate": COST},
        closure=-0.012,
        other_cores=0.03,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    written = profile()
    written.write(path)
    assert Profile.read(path) == written
    assert json.loads(path.read_text())["version"] == 1


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"version: 2.*newer lawa-opt"),
        ({"costs": {"train_step": {**COST.model_dump(), "median_seconds": -1}}}, "greater than 0"),
        ({"costs": {"train_step": {**COST.model_dump(), "median_seconds": 0}}}, "greater than 0"),
        ({"costs": {"train_step": {"median_seconds": 1}}}, r"train_step\.spread_seconds"),
        ({"closure": "much"}, "closure"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_document_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "reference.json"
    profile().write(path)
    change(path, **changes)
    with pytest.raises(ProfileError, match=message):
        Profile.read(path)


def test_costs_that_are_no_number_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    profile().write(path)
    path.write_text(path.read_text().replace("0.01,", "NaN,", 1))
    with pytest.raises(ProfileError, match="median_seconds"):
        Profile.read(path)


def test_no_json_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    with pytest.raises(ProfileError, match="No such file"):
        Profile.read(path)
    path.write_text("{")
    with pytest.raises(ProfileError, match="is not JSON"):
        Profile.read(path)
    path.write_text("[]")
    with pytest.raises(ProfileError, match="no reference profile"):
        Profile.read(path)


def test_another_workload_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"batch=64 and this run has batch=32"):
        profile().require({"workload": "digits", "batch": 32, "k": 5}, {"train_step"})
    with pytest.raises(ProfileError, match=r"k=5 and this run has k=None"):
        profile().require({"workload": "digits", "batch": 64}, {"train_step"})


def test_a_missing_operation_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"no cost for collect, swap .*never free"):
        profile().require(profile().workload, {"train_step", "swap", "collect"})
    profile().require(profile().workload, {"train_step"})


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reference.json"
    old = profile()
    old.write(path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        profile().model_copy(update={"closure": 0.5}).write(path)
    assert Profile.read(path) == old
    assert list(tmp_path.iterdir()) == [path]
