"""`python -m timing`, run for real."""

import json
import sys
from pathlib import Path

import pytest
from test_profile import profile

from timing import this_machine
from timing.__main__ import app
from timing.commandline import run


def timing(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["timing", *arguments])
    with pytest.raises(SystemExit) as stop:
        run(app)
    return int(stop.value.code or 0)


def test_probe_prints_this_machine(monkeypatch, capsys) -> None:
    assert timing(monkeypatch, "probe") == 0
    assert json.loads(capsys.readouterr().out) == this_machine().model_dump(mode="json")


def test_show_prints_a_profile(monkeypatch, capsys, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    profile().write(path)
    assert timing(monkeypatch, "show", str(path)) == 0
    out = capsys.readouterr().out
    assert "train_step" in out
    assert "10.0000 ms" in out
    assert "closure: -1.2%" in out


def test_show_refuses_what_is_no_profile(monkeypatch, capsys, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text("{}")
    assert timing(monkeypatch, "show", str(path)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "is no reference profile of version 1" in captured.err
