"""The examples that need no framework, in a short form."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lawa_opt.__main__ import main as lawa_opt_command
from tests.support import warm_python
from tests.support.fake_nvml import NOT_SUPPORTED, FakeNvml
from tests.support.profiles import process, profile_of, with_watts
from timing import MeasuredRun, Profile, map_run
from timing.gpu import span
from timing.gpu.visible_devices import visible_devices

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

# The third checkpoint is cut off in the midst of writing, as a loss of power would.
CUT_OFF = """
import os, pathlib, runpy, signal, sys, torch
train, whole_save, saved = runpy.run_path(sys.argv[1])["train"], torch.save, []
def save(state, stream):
    saved.append(state["step"])
    if len(saved) == 3:
        stream.write(b"half of it")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole_save(state, stream)
torch.save = save
train(pathlib.Path(sys.argv[2]), steps=100, every=20)
"""


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """Every value of a nested state dict, by where it is."""
    if isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, value in items for k, v in leaves(value, f"{path}/{key}").items()}
    return {path: state}


def assert_same(one: Any, other: Any) -> None:
    mine, others = leaves(one), leaves(other)
    assert mine.keys() == others.keys()
    for path, value in mine.items():
        same = torch.equal if isinstance(value, Tensor) else lambda a, b: a == b
        assert same(value, others[path]), path


def test_the_average_of_the_plain_loop_is_ahead() -> None:
    errors = example("plain_loop")["main"](epochs=4)
    live, average = torch.tensor(errors).mean(0)
    assert average < live


def test_a_training_killed_while_it_saves_goes_on_to_the_same_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, whole = tmp_path / "cut.pt", tmp_path / "whole.pt"
    done = subprocess.run(
        [warm_python.executable(), "-c", CUT_OFF, EXAMPLES / "resuming.py", cut],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    train = example("resuming")["train"]
    train(whole, steps=100, every=20)
    assert "goes on" not in capsys.readouterr().out
    train(cut, steps=100, every=20)
    assert "goes on from step 40, with 5 snapshots" in capsys.readouterr().out
    assert_same(torch.load(cut, weights_only=True), torch.load(whole, weights_only=True))


def test_what_the_resuming_example_says_is_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example("resuming")["main"](tmp_path, steps=100, cut=77)
    out = capsys.readouterr().out
    assert "cut off after step 77" in out
    assert "momentum_buffer lawa_0 lawa_1 lawa_2 lawa_3 lawa_4" in out
    assert "from step 50, with 5 snapshots" in out
    assert "from step 50, with 0 snapshots" in out
    assert re.findall(r": (True|False)$", out, flags=re.MULTILINE) == ["True"] * 3
    whole, cut, adopted = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "cut", "plain")
    )
    assert_same(cut, whole)
    for part in ("model", "schedule"):
        assert_same(adopted[part], whole[part])
    momentum = "momentum_buffer"
    for index, entry in whole["opt"]["state"].items():
        if momentum in entry:
            assert torch.equal(adopted["opt"]["state"][index][momentum], entry[momentum])
    # The window has begun anew: its position counts from where LAWA was adopted.
    assert adopted["opt"]["state"][0]["lawa_step"] == 50
    assert whole["opt"]["state"][0]["lawa_step"] == 100


def naive_average(states: Sequence[dict[str, Tensor]], factors: Sequence[float]) -> Any:
    """In float64: the oldest, and each update from there on times its factor; integers' newest."""
    average = {name: tensor.double() for name, tensor in states[0].items()}
    for (before, after), factor in zip(pairwise(states), factors, strict=True):
        for name in average:
            average[name] += factor * (after[name].double() - before[name].double())
    newest = states[-1]
    return {
        name: average[name].to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in newest.items()
    }


@pytest.mark.slow
def test_the_study_of_the_example_is_that_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("study")
    (said,) = re.findall(r"^python -m lawa_opt (.*)$", module["__doc__"], flags=re.MULTILINE)
    words = said.replace("examples/", f"{EXAMPLES}/").split()
    monkeypatch.chdir(tmp_path)
    found = module["main"](steps=240)
    printed = capsys.readouterr().out
    assert str(found) in printed
    assert found.has_halves
    assert (tmp_path / "digits-run" / "study" / "study.png").stat().st_size > 1000
    gaps = {b - a for a, b in itertools.pairwise(found.steps)}
    assert len(gaps) > 2
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        assert lawa_opt_command(words) == 0
    finally:
        signal.signal(signal.SIGTERM, terminate)
    assert capsys.readouterr().out.splitlines()[:-1] == printed.splitlines()


def test_averages_of_files_are_those_of_the_example_and_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = example("averaging_files")
    paths, model, errors = module["main"](steps=70, every=10)
    out = capsys.readouterr().out
    states = [load_file(path) for path in paths[-5:]]
    naive = {
        "last checkpoint": naive_average(states, [1.0] * 4),
        "uniform mean of the last 5": naive_average(states, [1 - i / 5 for i in range(1, 5)]),
        "1-sqrt decay over the last 5": naive_average(
            states, [1 - (i / 5) ** 0.5 for i in range(1, 5)]
        ),
    }
    found = dict(re.findall(r"^error of the (.*?) +([\d.]+)%$", out, flags=re.MULTILINE))
    assert found.keys() == naive.keys() == errors.keys()
    assert len(set(errors.values())) > 1
    # The example has the last average in the model when it ends.
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.testing.assert_close(last, naive["1-sqrt decay over the last 5"], rtol=1e-5, atol=1e-6)
    x, y = module["load_digits"](return_X_y=True)
    x, y = torch.tensor(x[1200:] / 16, dtype=torch.float32), torch.tensor(y[1200:])
    for name, weights in naive.items():
        error = module["error_rate"](model, weights, x, y)
        assert errors[name] == error
        assert float(found[name]) == pytest.approx(100 * error, abs=0.005)

    (said,) = re.findall(r"^python -m lawa_opt (.*)$", module["__doc__"], flags=re.MULTILINE)
    words = [
        name
        for word in shlex.split(said)
        for name in (map(str, sorted(Path().glob(word))) if "*" in word else [word])
    ]
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        assert lawa_opt_command(words) == 0
    finally:
        signal.signal(signal.SIGTERM, terminate)
    assert_same(load_file("average.safetensors"), last)


@pytest.mark.skipif(bool(visible_devices().devices), reason="a GPU is visible here")
def test_without_a_gpu_the_host_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EXAMPLES / "reading_gpu_time.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--seconds", "0.3"])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert "no GPU time: no GPU is read: NVML says" in out
    pattern = r"train_step: (\d+) passes, ([\d.]+) s by the clock \(host\), ([\d.]+) s of CPU time"
    ((passes, wall, cpu),) = re.findall(pattern, out)
    assert int(passes) > 0
    assert float(wall) > 0
    assert float(cpu) > 0
    assert "active" not in out


def test_what_nvml_says_is_printed_with_scope_and_bound(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(span, "SHORTEST_WINDOW_SECONDS", 0.0)
    nvml.set("monitor", 1)
    nvml.set("monitor percent", 75)
    nvml.set("energy", 5_000_000)
    for name in ("energy", "power"):
        nvml.refuse(name, NOT_SUPPORTED, device=1)
    main = example("reading_gpu_time")["main"]
    train = main.__globals__["train"]

    def using_energy(*arguments: Any) -> None:
        train(*arguments)
        nvml.set("energy", 5_002_500)
        nvml.set("field 74", 0.05e9)

    monkeypatch.setitem(main.__globals__, "train", using_energy)
    main(seconds=0.4)
    out = capsys.readouterr().out
    one, other = out.split("NVIDIA Fake B (GPU-bbbb)")
    assert one.startswith("NVIDIA Fake A (GPU-aaaa), over ")
    window = float(re.search(r"over ([\d.]+) s", one)[1])
    active, bound = map(float, re.search(r"active ([\d.]+) s, known to ([\d.]+) s", one).groups())
    assert active == pytest.approx(0.75 * window, abs=0.75 * 0.05 + 0.005)
    assert bound == pytest.approx(0.2 + 0.005 * window, abs=0.006)
    assert "scope: device; source: performance monitor" in one
    assert "energy 2.5 J of the whole device, by counter" in one
    assert "throttled by software power cap for 0.05 s" in one
    assert "J of the whole device" not in other
    assert "no energy counter: Not Supported" in other
    assert "no GPU time" not in out


@pytest.mark.slow
def test_a_loop_of_ones_own_spends_its_budget_and_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = example("own_budget")
    costs = {"train_step": 0.01, "evaluate": 0.002}
    row = with_watts(process(costs), train_step=100.0)
    profile_of([row] * 5, module["WORKLOAD"]).write("reference.json")
    account, error = module["main"](0.305, "reference.json")
    assert account.counts == {"train_step": 30, "evaluate": 1}
    assert error < 0.5
    out = capsys.readouterr().out
    assert "30 steps, 0.3000 s of 0.305 s RST" in out
    assert "\n30 J of reference system energy\n" in out
    assert "run.json has what it took here: python -m timing map run.json" in out
    mapped = map_run(MeasuredRun.read("run.json"), Profile.read("reference.json"))
    assert mapped.is_exact
    assert mapped.rst.estimate == pytest.approx(account.rst_seconds)
    # And by costs of its own, which it measures.
    account, _ = module["main"](0.05)
    assert 0 < account.rst_seconds <= 0.05
