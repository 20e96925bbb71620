"""Reference profiles: read back as written, and refused or flagged where they are wrong."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.profiles import ROWS, SOFTWARE, process, profile, profile_of
from timing import (
    Cost,
    Profile,
    ProfileError,
    profile_warnings,
)

PROFILE_KEYS = {
    *("version", "created", "machine", "software", "workload", "every", "processes", "discarded"),
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    written = profile()
    written.write(path)
    assert Profile.read(path) == written
    document = json.loads(path.read_text())
    assert document["version"] == 3
    assert document.keys() == PROFILE_KEYS
    assert document["software"]["torch"] == SOFTWARE.torch
    assert [row["costs"]["train_step"]["median_seconds"] for row in document["processes"]] == [
        row["train_step"] for row in ROWS
    ]


def test_the_profile_has_the_medians_of_its_processes() -> None:
    made = profile_of([process({"a": value}, value / 100) for value in (5.0, 1.0, 2.0, 3.0)])
    assert made.costs["a"] == Cost(median_seconds=2.5, spread_seconds=0.25, samples=400)
    assert made.additivity_error == 0.025
    assert len(made.processes) == 4


def test_charged_is_the_median_whatever_the_additivity_error() -> None:
    rows = [{"step": 0.010, "collect": 0.002}, {"step": 0.014, "collect": 0.001}]
    rows.append({"step": 0.011, "collect": 0.004})
    errors = (-0.04, 0.01, -0.03)
    made = profile_of([process(row, error) for row, error in zip(rows, errors, strict=True)])
    assert made.seconds == {"step": 0.011, "collect": 0.002}
    assert [process.seconds for process in made.processes] == rows
    assert made.additivity_error == -0.03


Change = Callable[[dict[str, Any]], object]

WRONG: list[tuple[Change, str]] = [
    (lambda d: d.update(version=4), r"version: 4.*newer lawa-opt"),
    (lambda d: d.update(version=1), r"of version 1, .* `python -m timing calibrate"),
    (lambda d: d.update(version=2), r"of version 2, .* `python -m timing calibrate"),
    (lambda d: d.update(version="3"), r"version: '3'"),
    (lambda d: d.pop("version"), r"no reference profile of version 3"),
    (
        lambda d: d["processes"][2]["costs"]["train_step"].update(median_seconds=-1),
        "greater than 0",
    ),
    (lambda d: d["processes"][2]["costs"]["train_step"].update(median_seconds=0), "greater than 0"),
    (lambda d: d["processes"][2]["costs"]["evaluate"].update(spread_seconds=-1), "or equal to 0"),
    (lambda d: d["processes"][0]["costs"]["evaluate"].pop("spread_seconds"), r"spread_seconds"),
    (lambda d: d["processes"][0].update(additivity_error="much"), "additivity_error"),
    # What follows from the rows is not kept beside them.
    (lambda d: d.update(costs=d["processes"][0]["costs"]), "costs: Extra inputs"),
    (lambda d: d.update(surprise=1), "surprise"),
    (lambda d: d["software"].pop("torch"), r"software\.torch"),
    (lambda d: d["processes"].clear(), "at least 1 item"),
    (
        lambda d: d["processes"][1]["costs"].pop("evaluate"),
        r"process 2 do not have the same operations \(in one alone: evaluate\)",
    ),
    (lambda d: d["every"].pop("evaluate"), r"in one alone: evaluate"),
    (lambda d: d["every"].update(evaluate=0), "every must give each operation a number"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_document_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    path = tmp_path / "reference.json"
    profile().write(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match=message):
        Profile.read(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_costs_that_are_no_number_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "reference.json"
    profile().write(path)
    path.write_text(path.read_text().replace("0.01,", f"{number},", 1))
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
    with pytest.raises(ProfileError, match=r"with k=5 and this run has no k:"):
        profile().require({"workload": "digits", "batch": 64}, {"train_step"})


def test_a_refusal_names_all_in_which_two_workloads_differ() -> None:
    other = {"workload": "mlp", "batch": 64, "optimizer": "sgd"}
    with pytest.raises(ProfileError) as refused:
        profile().require(other, {"train_step"})
    assert (
        "measured with k=5, no optimizer, workload='digits' and this run has "
        "no k, optimizer='sgd', workload='mlp': " in str(refused.value)
    )


def test_a_missing_operation_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"no cost for collect, swap .*never free"):
        profile().require(profile().workload, {"train_step", "swap", "collect"})
    profile().require(profile().workload, {"train_step"})


def test_flops_are_a_cross_check_where_both_sides_have_them() -> None:
    bare = profile()
    counted = bare.model_copy(update={"workload": {**bare.workload, "flops_per_step": 100}})
    counted.require(bare.workload, set())
    bare.require(counted.workload, set())
    with pytest.raises(ProfileError, match=r"flops_per_step=100 and this run has .*=101"):
        counted.require({**bare.workload, "flops_per_step": 101}, set())


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
        profile_of(ROWS[:3]).write(path)
    assert Profile.read(path) == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_sound_profile_has_no_warnings() -> None:
    assert profile_warnings(profile()) == ()


def test_what_is_odd_is_warned_of() -> None:
    (few,) = profile_warnings(profile_of(ROWS[:3] + ROWS[:1]))
    assert "4 process(es): at least 5" in few
    (alone,) = profile_warnings(profile_of(ROWS[:1]))
    assert "1 process(es)" in alone
    noisy = process(ROWS[0], warnings=("other processes kept 1.0 cores busy",))
    assert profile_warnings(profile_of([*ROWS, noisy])) == (
        "process 6: other processes kept 1.0 cores busy",
    )
    (open_loop,) = profile_warnings(profile_of([*ROWS, process(ROWS[0], additivity_error=-0.06)]))
    assert open_loop == "process 6: its additivity error is -6.0%"
    slow = {"train_step": 0.01, "evaluate": 0.9}
    wide, large = profile_warnings(profile_of([*ROWS, slow]))
    assert "RST of the reference iteration is known to ±" in wide
    assert large.startswith("evaluate: 4.5 times as long in one process as in another")
