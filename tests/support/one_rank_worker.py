"""LAWA over FSDP2 and DTensors on one rank: `python one_rank_worker.py cpu` or `cuda`."""

import sys
import warnings

import torch
import torch.distributed as dist

# Before the group, which it would keep: see baselines/training/distributed.py.
import torch.distributed.nn
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from lawa_opt import LAWA

K, EVERY, STEPS = 3, 2, 9


def make_model(device):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(17, 17), nn.Tanh())
    return nn.Sequential(nn.Linear(5, 17), nn.Tanh(), block, nn.Linear(17, 3)).to(device)


def batch(step, device):
    torch.manual_seed(step)
    return torch.randn(8, 5).to(device)


def optimizer(parameters, **options):
    base = torch.optim.AdamW(parameters, lr=0.03)
    return LAWA(base, k=K, every=EVERY, **options)


def wholes(parameters):
    return [parameter.full_tensor().detach().clone() for parameter in parameters]


def check_mean(opt, parameters, snapshots):
    live = wholes(parameters)
    with opt.averaged():
        for whole, *same in zip(wholes(parameters), *snapshots[-K:], strict=True):
            mean = torch.stack(same).double().mean(0)
            torch.testing.assert_close(whole.double(), mean, rtol=1e-6, atol=1e-7)
    assert all(map(torch.equal, live, wholes(parameters)))


def check_fsdp2(device, mesh, window):
    plain, model = make_model(device), make_model(device)
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    parameters = list(model.parameters())
    alone = torch.optim.AdamW(plain.parameters(), lr=0.03)
    opt = optimizer(parameters, device=window)
    snapshots = []
    for step in range(STEPS):
        for each, each_optimizer in ((plain, alone), (model, opt)):
            each_optimizer.zero_grad()
            each(batch(step, device)).square().mean().backward()
            each_optimizer.step()
        if opt.schedule.last_collect == opt.schedule.steps:
            snapshots.append(wholes(parameters))
    assert opt.num_snapshots == K
    for whole, expected in zip(wholes(parameters), plain.parameters(), strict=True):
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-6)
    check_mean(opt, parameters, snapshots)
    with torch.no_grad():
        live = model(batch(0, device)).clone()
        with opt.averaged():
            # What FSDP had gathered is gathered anew.
            averaged = model(batch(0, device)).clone()
        assert torch.equal(model(batch(0, device)), live)
    assert not torch.allclose(averaged, live)


def check_dtensor(device, mesh, window):
    torch.manual_seed(0)
    weight = distribute_tensor(torch.randn(6, 4).to(device), mesh, [Shard(0)])
    parameter = nn.Parameter(weight)
    opt = optimizer([parameter], device=window)
    snapshots = []
    for step in range(STEPS):
        opt.zero_grad()
        (parameter * (step + 1)).square().sum().backward()
        opt.step()
        if opt.schedule.last_collect == opt.schedule.steps:
            snapshots.append(wholes([parameter]))
    check_mean(opt, [parameter], snapshots)


def main():
    device = sys.argv[1]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device, (1,))
    for window in (None, "cpu") if device == "cuda" else (None, "cpu:0"):
        check_fsdp2(device, mesh, window)
        check_dtensor(device, mesh, window)
    dist.destroy_process_group()
    print("all is well")


if __name__ == "__main__":
    main()
