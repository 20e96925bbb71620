"""LAWA under torchrun and torch.distributed.checkpoint; distributed_worker.py holds the checks."""

import copy
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from lawa_opt import LAWA
from tests.support import warm_python
from tests.support.distributed_worker import (
    ALONE,
    CHECKS,
    EVERY,
    FSDP2,
    SAVED_AT,
    STEPS,
    K,
    load,
    make_model,
    outputs,
    save,
    setting,
    train,
)

RANKS = 2
TIMEOUT_SECONDS = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo"),
    # torch says so of itself, whether or not it was asked for.
    pytest.mark.filterwarnings("ignore:torch.distributed is .*unavailable:UserWarning"),
    # torch 2.6 writes checkpoints by what it deprecates itself.
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with the checkpoint one process saved in passing, and that process's results."""
    folder = tmp_path_factory.mktemp("ranks")
    model, opt = setting("one")
    train(model, opt, range(SAVED_AT))
    save(folder / "one", model, opt)
    train(model, opt, range(SAVED_AT, STEPS))
    expected = {"live": outputs(model)}
    with opt.averaged():
        expected["mean"] = outputs(model)
    torch.save(expected, folder / "one.pt")
    return folder, expected


@pytest.fixture(scope="module")
def ranks(undisturbed):
    """What became of each check on each rank; the launch is dear, so there is one for all."""
    folder, _ = undisturbed
    worker = Path(__file__).parent.parent / "support" / "distributed_worker.py"
    # A port of 0 is a free one.
    launch = ["torch.distributed.run", f"--nproc-per-node={RANKS}", "--rdzv-backend=c10d"]
    command = [
        warm_python.executable(),
        "-m",
        *launch,
        "--rdzv-endpoint=127.0.0.1:0",
        worker,
        folder,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    files = [folder / f"rank{rank}.json" for rank in range(RANKS)]
    said = (folder / "output.txt").read_text()
    assert all(file.exists() for file in files), said
    assert "lawa_opt" not in said, f"a warning of ours:\n{said}"
    return [json.loads(file.read_text()) for file in files]


def skip_without_fsdp2(what):
    if "fsdp2" in what and not FSDP2:
        pytest.skip("in this torch FSDP2 does not run on the CPU")


@pytest.mark.parametrize("check", CHECKS)
def test_on_two_ranks(ranks, check):
    skip_without_fsdp2(check)
    for rank, outcome in enumerate(ranks):
        assert check in outcome, f"rank {rank} did not get to it: {outcome}"
        assert outcome[check] == "", f"rank {rank}:\n{outcome[check]}"


@pytest.mark.parametrize("kind", ["ddp", "split", "fsdp2"])
def test_one_process_goes_on_from_a_checkpoint_of_two_ranks(ranks, undisturbed, kind):
    skip_without_fsdp2(kind)
    folder, expected = undisturbed
    model, opt = setting("one")
    load(folder / kind, model, opt)
    assert (opt.schedule.steps, opt.num_snapshots) == (SAVED_AT, K)
    train(model, opt, range(SAVED_AT, STEPS))
    assert torch.equal(outputs(model), expected["live"])
    with opt.averaged():
        assert torch.equal(outputs(model), expected["mean"])


def test_checkpoint_from_before_the_first_collect_keeps_the_step(tmp_path):
    def long_interval(model):
        return LAWA(torch.optim.AdamW(model.parameters(), lr=0.03), k=K, every=5)

    model = make_model()
    opt = long_interval(model)
    train(model, opt, range(3))
    assert opt.num_snapshots == 0
    save(tmp_path, model, opt)
    train(model, opt, range(3, 7))
    fresh = make_model()
    resumed = long_interval(fresh)
    load(tmp_path, fresh, resumed)
    assert (resumed.schedule.steps, resumed.num_snapshots) == (3, 0)
    train(fresh, resumed, range(3, 7))
    assert resumed.num_snapshots == 1, "collected at step 5 of the whole run"
    with opt.averaged(), resumed.averaged():
        assert torch.equal(outputs(fresh), outputs(model))


def test_checkpoint_that_does_not_say_leaves_collecting_switched_off(tmp_path):
    model, opt = setting("one")
    train(model, opt, range(SAVED_AT))
    state = {"opt": get_optimizer_state_dict(model, opt)}
    for entry in state["opt"]["state"].values():
        del entry["lawa_enabled"]
    dcp.save(state, checkpoint_id=tmp_path, **ALONE)
    fresh, resumed = setting("one")
    resumed.enabled = False
    state = {"opt": get_optimizer_state_dict(fresh, resumed)}
    planner = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(state, checkpoint_id=tmp_path, planner=planner, **ALONE)
    set_optimizer_state_dict(fresh, resumed, state["opt"])
    assert (resumed.schedule.steps, resumed.num_snapshots) == (SAVED_AT, K)
    assert not resumed.enabled


def test_checkpoint_of_the_base_optimizer_starts_an_empty_window(tmp_path):
    model = make_model()
    plain = torch.optim.AdamW(model.parameters(), lr=0.03)
    train(model, plain, range(SAVED_AT))
    save(tmp_path, model, plain)
    train(model, plain, range(SAVED_AT, STEPS))
    fresh, opt = setting("one")
    state = {"model": get_model_state_dict(fresh), "opt": get_optimizer_state_dict(fresh, opt.base)}
    dcp.load(state, checkpoint_id=tmp_path, **ALONE)
    set_model_state_dict(fresh, state["model"])
    set_optimizer_state_dict(fresh, opt, state["opt"])
    assert opt.num_snapshots == 0
    train(fresh, opt, range(SAVED_AT, STEPS))
    assert torch.equal(outputs(fresh), outputs(model))
    assert opt.num_snapshots == (STEPS - SAVED_AT) // EVERY


@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_state_dict_in_mid_training_of_momentum_free_sgd_is_no_step(lr):
    """torch takes a step to make the state, since such an optimizer never has any."""
    model = make_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=lr), k=K, every=1)
    train(model, opt, range(2))
    opt.zero_grad()
    before = copy.deepcopy(model.state_dict())
    state = get_optimizer_state_dict(model, opt)
    assert (opt.schedule.steps, opt.num_snapshots) == (2, 2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    fresh = make_model()
    resumed = LAWA(torch.optim.SGD(fresh.parameters(), lr=0.1), k=K, every=1)
    set_optimizer_state_dict(fresh, resumed, state)
    assert (resumed.schedule.steps, resumed.num_snapshots) == (2, 2)
    train(model, opt, range(2, 3))
    assert opt.schedule.steps == 3


def test_steps_at_a_rate_of_zero_are_steps():
    """A warm-up begins so, and hands over its closure in the same way."""
    model = make_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.0), k=K, every=1)
    model(torch.ones(1, 5)).sum().backward()
    opt.step(closure=None)
    assert (opt.schedule.steps, opt.num_snapshots) == (1, 1)


def test_averaged_weights_saved_through_dcp_never_become_live_in_silence(tmp_path):
    model, opt = setting("one")
    train(model, opt, range(SAVED_AT))
    live = outputs(model)
    with opt.averaged():
        save(tmp_path / "dcp", model, opt)
    fresh, resumed = setting("one")
    with pytest.raises(ValueError, match=r"left out in loading.*dcp_to_torch_save"):
        load(tmp_path / "dcp", fresh, resumed)
    assert resumed.num_snapshots == 0
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "whole.pt")
    state = torch.load(tmp_path / "whole.pt", weights_only=True)
    set_model_state_dict(fresh, state["model"])
    set_optimizer_state_dict(fresh, resumed, state["opt"])
    resumed.train()
    assert torch.equal(outputs(fresh), live)
