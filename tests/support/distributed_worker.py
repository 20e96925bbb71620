"""Checks of LAWA in several processes: `torchrun ... distributed_worker.py FOLDER`.

test_lawa_distributed.py starts it. Each rank writes into FOLDER what became of each check. All
ranks train on the same batch unless a check says otherwise, so that the mean of the gradients is
bit for bit the gradient of one process.
"""

import copy
import inspect
import io
import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

# Before the group, which it would keep: see baselines/training/distributed.py.
import torch.distributed.nn
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from lawa_opt import LAWA

K, EVERY, SAVED_AT, STEPS = 3, 2, 7, 13
# What FSDP2 calls on every device, and torch 2.6 has not on the CPU.
FSDP2 = hasattr(torch.cpu.Stream, "record_event")
IN_PARTS = ("split", "fsdp2") if FSDP2 else ("split",)
# What one process tells torch.distributed.checkpoint; torch 2.6 has no word for it, and warns.
ALONE = {"no_dist": True} if "no_dist" in inspect.signature(dcp.save).parameters else {}


def make_model():
    """Sizes that no number of ranks divides, in a root and a block for FSDP to treat apart."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(17, 17), nn.Tanh())
    return nn.Sequential(nn.Linear(5, 17), nn.Tanh(), block, nn.Linear(17, 3))


def batch(step, rank=0):
    torch.manual_seed(1000 * rank + step)
    return torch.randn(8, 5), torch.randn(8, 3)


def train(model, opt, steps, rank=0, after=lambda: None):
    for step in steps:
        x, y = batch(step, rank)
        opt.zero_grad()
        (model(x) - y).square().mean().backward()
        opt.step()
        after()


def optimizer(model, **kwargs):
    return LAWA(torch.optim.AdamW(model.parameters(), lr=0.03), k=K, every=EVERY, **kwargs)


@torch.no_grad()
def outputs(model):
    return model(batch(0)[0])


def setting(kind, model=None):
    """A model and its optimizer over all ranks ("ddp", "split", "fsdp1", "fsdp2") or in one."""
    model = make_model() if model is None else model
    if kind == "one":
        return model, optimizer(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if kind == "fsdp2":
        fully_shard(model[2], mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, optimizer(model)
    if kind == "fsdp1":
        options = {"use_orig_params": True, "device_id": torch.device("cpu")}
        model[2] = FullyShardedDataParallel(model[2], **options)
        model = FullyShardedDataParallel(model, **options)
        return model, optimizer(model)
    model = DistributedDataParallel(model)
    return model, optimizer(model, mesh=mesh if kind == "split" else None)


def save(folder, model, opt):
    state = {"model": get_model_state_dict(model), "opt": get_optimizer_state_dict(model, opt)}
    dcp.save(state, checkpoint_id=folder, **({} if dist.is_initialized() else ALONE))


def load(folder, model, opt):
    state = {"model": get_model_state_dict(model), "opt": get_optimizer_state_dict(model, opt)}
    dcp.load(state, checkpoint_id=folder, **({} if dist.is_initialized() else ALONE))
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, opt, state["opt"])


def naive_trace(rank=0):
    """Live weights after each step of one process: the oracle's input."""
    model = make_model()
    trace = []
    plain = torch.optim.AdamW(model.parameters(), lr=0.03)
    train(model, plain, range(STEPS), rank, lambda: trace.append(copy.deepcopy(model)))
    return trace


def naive_mean(trace):
    """The float64 mean of the window after STEPS steps, as a model."""
    collected = [model for step, model in enumerate(trace, start=1) if step % EVERY == 0][-K:]
    mean = copy.deepcopy(collected[0])
    for name, parameter in mean.named_parameters():
        values = [dict(model.named_parameters())[name].double() for model in collected]
        parameter.data = (sum(values) / K).float()
    return mean


def same_on_all_ranks(tensor):
    everyones = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, tensor.contiguous())
    return all(torch.equal(other, tensor) for other in everyones)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def refusal(error, call, *args):
    try:
        call(*args)
    except error as raised:
        return str(raised)
    raise AssertionError(f"{call} did not raise {error.__name__}")


def check_ddp_replicas_and_averages_agree_and_training_is_untouched(_):
    rank = dist.get_rank()
    plain = DistributedDataParallel(make_model())
    base = torch.optim.AdamW(plain.parameters(), lr=0.03)
    trace = []
    train(plain, base, range(STEPS), rank, lambda: trace.append(copy.deepcopy(plain.module)))
    model, opt = setting("ddp")
    train(model, opt, range(STEPS), rank)
    assert torch.equal(flat(model), flat(plain))
    assert same_on_all_ranks(flat(model))
    with opt.averaged():
        assert same_on_all_ranks(flat(model))
        torch.testing.assert_close(flat(model), flat(naive_mean(trace)), rtol=1e-6, atol=1e-7)
    assert torch.equal(flat(model), flat(plain))


class Odd(nn.Module):
    """Parameters that do not divide: a scalar, an empty one, one row, buffers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.scale = nn.Parameter(torch.ones(()))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.row = nn.Parameter(torch.randn(1, 7))
        self.linear = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.conv = nn.Conv1d(7, 3, 1).to(memory_format=torch.contiguous_format)

    def forward(self, x):
        hidden = self.norm(self.linear(x) * self.row + self.empty.sum())
        return self.scale * self.conv(hidden[:, :, None])[:, :, 0]


def check_split_window_reads_the_same_bits(_):
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    seen = {}
    for over in (None, mesh):
        # Buffers of DDP differ between ranks until the next forward pass takes rank 0's.
        model = DistributedDataParallel(Odd())
        opt = optimizer(model, buffers=model.buffers(), mesh=over)
        train(model, opt, range(STEPS - 2), rank)
        opt.add_param_group({"params": [nn.Parameter(torch.randn(40, 30))]})
        train(model, opt, range(STEPS - 2, STEPS), rank)
        means = [copy.deepcopy(model.state_dict())]
        for latest in (1, 2, None):
            with opt.averaged(latest):
                means.append(copy.deepcopy(model.state_dict()))
        means.append(opt.averaged_state_dict(model, dtype=torch.float64))
        twin_model, twin = copy.deepcopy((model.module, opt))
        means.append(twin.averaged_state_dict(twin_model))
        means.append(model.state_dict())
        seen[over] = means, opt.window.nbytes
    whole, split = seen[None], seen[mesh]
    for expected, got in zip(whole[0], split[0], strict=True):
        assert len(expected) > 0
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), (expected, got)
    assert split[1] < whole[1]


def check_split_window_holds_its_share_and_collects_alone(_):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(512, 128), nn.Linear(128, 512), nn.Linear(512, 1))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    opt = LAWA(torch.optim.SGD(model.parameters()), k=K, mesh=mesh)
    with CommDebugMode() as collecting:
        opt.collect()
    assert collecting.get_total_counts() == 0
    share = K * sum(p.nbytes for p in model.parameters()) / dist.get_world_size()
    assert opt.window.nbytes < 1.01 * share
    with CommDebugMode() as reading, opt.averaged():
        pass
    assert reading.get_total_counts() > 0, "a check that would also pass with nothing counted"


def check_split_window_refuses_what_is_not_its_part(_):
    model, opt = setting("split")
    train(model, opt, range(SAVED_AT))
    own = io.BytesIO()
    torch.save(opt.state_dict(), own)
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, own.getvalue())
    loaded = [torch.load(io.BytesIO(data), weights_only=True) for data in everyones]
    _, fresh = setting("split")
    fresh.load_state_dict(loaded[dist.get_rank()])
    assert fresh.num_snapshots == opt.num_snapshots == K
    other = loaded[1 - dist.get_rank()]
    _, fresh = setting("split")
    assert "torch.distributed.checkpoint" in refusal(ValueError, fresh.load_state_dict, other)
    assert fresh.num_snapshots == 0
    assert not fresh.state
    _, whole = setting("ddp")
    mine = loaded[dist.get_rank()]
    assert "this LAWA whole snapshots" in refusal(ValueError, whole.load_state_dict, mine)
    _, unsplit = setting("ddp")
    train(_, unsplit, range(SAVED_AT))
    fresh.load_state_dict(unsplit.state_dict())
    with fresh.averaged(), opt.averaged():
        assert torch.equal(flat(opt_model(fresh)), flat(opt_model(opt)))
    grid = init_device_mesh("cpu", (dist.get_world_size(), 1))
    adam = torch.optim.AdamW(model.parameters())
    assert "one dimension" in refusal(ValueError, lambda: LAWA(adam, mesh=grid))


def opt_model(opt):
    return nn.ParameterList(p for group in opt.param_groups for p in group["params"])


def check_saving_averaged_weights_in_parts_is_refused(_):
    for kind in IN_PARTS:
        model, opt = setting(kind)
        train(model, opt, range(SAVED_AT))
        with opt.averaged():
            assert "on all ranks" in refusal(RuntimeError, opt.state_dict)
        assert opt.state_dict()["state"][0]["lawa_held"] == K


def check_fsdp2_collects_alone_and_evaluates_the_average(_):
    trace = naive_trace()
    model, opt = setting("fsdp2")
    train(model, opt, range(STEPS))
    with CommDebugMode() as collecting:
        opt.collect()
    assert collecting.get_total_counts() == 0
    model, opt = setting("fsdp2")
    train(model, opt, range(STEPS))
    evaluates_the_average(model, opt, trace)
    with CommDebugMode() as evaluating:
        outputs(model)
    assert evaluating.get_total_counts() > 0, "a check that would also pass with nothing counted"


def check_fsdp1_evaluates_the_average(_):
    model, opt = setting("fsdp1")
    empty = torch.tensor([p.numel() == 0 for p in opt_model(opt)]).sum()
    dist.all_reduce(empty)
    assert empty > 0, "a rank is to hold nothing of some parameter"
    train(model, opt, range(STEPS))
    evaluates_the_average(model, opt, naive_trace())


def evaluates_the_average(model, opt, trace):
    """FSDP must see the average at once, and the live weights at once again.

    It keeps the root's gathered parameters after a pass without backward, hence passes in between.
    """
    live, mean = outputs(trace[-1]), outputs(naive_mean(trace))
    assert torch.equal(outputs(model), live)
    with opt.averaged():
        torch.testing.assert_close(outputs(model), mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(outputs(model), live)
    opt.eval()
    torch.testing.assert_close(outputs(model), mean, rtol=1e-5, atol=1e-6)
    opt.train()
    one, opt_one = setting("one", trace[-1])
    for step in (STEPS, STEPS + 1):
        opt_one.base.state.clear()
        opt.base.state.clear()
        train(one, opt_one, [step])
        train(model, opt, [step])
    with opt.averaged():
        averaged = outputs(model)
    assert torch.equal(outputs(model), outputs(one))
    opt.restart_from_average()
    assert torch.equal(outputs(model), averaged)


def check_fsdp1_resumes_through_state_dicts(_):
    model, opt = setting("fsdp1")
    train(model, opt, range(SAVED_AT))
    whole = StateDictOptions(full_state_dict=True)
    weights = get_model_state_dict(model, options=whole)
    state = get_optimizer_state_dict(model, opt, options=whole)
    state = copy.deepcopy([weights, state] if dist.get_rank() == 0 else None)
    sent = [state]
    dist.broadcast_object_list(sent, src=0)
    weights, state = sent[0]
    train(model, opt, range(SAVED_AT, STEPS))
    fresh, resumed = setting("fsdp1")
    set_model_state_dict(fresh, weights, options=whole)
    set_optimizer_state_dict(fresh, resumed, state, options=whole)
    train(fresh, resumed, range(SAVED_AT, STEPS))
    with opt.averaged(), resumed.averaged():
        assert torch.equal(outputs(fresh), outputs(model))


def resumes_undisturbed(kind, folder):
    """Saved on these ranks and loaded again; and loaded from a checkpoint of one process."""
    model, opt = setting(kind)
    train(model, opt, range(SAVED_AT))
    save(folder / kind, model, opt)
    train(model, opt, range(SAVED_AT, STEPS))
    live = outputs(model)
    with opt.averaged():
        mean = outputs(model)
    expected = torch.load(folder / "one.pt")
    assert torch.equal(live, expected["live"])
    assert torch.equal(mean, expected["mean"])
    for source in (kind, "one"):
        fresh, resumed = setting(kind)
        load(folder / source, fresh, resumed)
        assert (resumed.schedule.steps, resumed.num_snapshots) == (SAVED_AT, K)
        train(fresh, resumed, range(SAVED_AT, STEPS))
        assert torch.equal(outputs(fresh), live)
        with resumed.averaged():
            assert torch.equal(outputs(fresh), mean), source


def check_ddp_resumes_through_distributed_checkpoint(folder):
    resumes_undisturbed("ddp", folder)


def check_split_resumes_through_distributed_checkpoint(folder):
    resumes_undisturbed("split", folder)


def check_fsdp2_resumes_through_distributed_checkpoint(folder):
    resumes_undisturbed("fsdp2", folder)


def check_switched_off_comes_back_through_distributed_checkpoint(folder):
    for kind in IN_PARTS:
        model, opt = setting(kind)
        train(model, opt, range(SAVED_AT))
        opt.enabled = False
        save(folder / f"{kind}_off", model, opt)
        fresh, resumed = setting(kind)
        load(folder / f"{kind}_off", fresh, resumed)
        assert not resumed.enabled
        load(folder / kind, fresh, resumed)
        assert resumed.enabled


CHECKS = [name for name in list(globals()) if name.startswith("check_")]


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    outcome = {}
    for name in CHECKS:
        # One rank's failure must not leave the other in a collective of the next check.
        try:
            globals()[name](folder)
            outcome[name] = ""
        except Exception:
            outcome[name] = traceback.format_exc()
        (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(outcome))
        failed = torch.tensor(float(bool(outcome[name])))
        dist.all_reduce(failed)
        if os.environ.get("FAIL_FAST") and failed:
            break
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
