"""Saves DCP folders as training over two ranks does: torchrun ... rank_folders.py FOLDER."""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def main(folder):
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 4), torch.nn.Linear(4, 5)
    )
    # Rows of some weights on each rank, columns of others, and odd sizes that do not divide.
    parallelize_module(model[2], mesh, ColwiseParallel())
    parallelize_module(model[3], mesh, RowwiseParallel())
    for layer in (model[0], model[1]):
        fully_shard(layer, mesh=mesh)
    opt = torch.optim.AdamW(model.parameters(), 0.01, foreach=False)
    for name, step in (("d", 10), ("a", 20), ("b", 30)):
        model(torch.ones(4, 5) * step).sum().backward()
        opt.step()
        weights, moments = get_state_dict(model, opt)
        state = {"model": weights, "optim": moments, "step": step}
        checkpoint.save(state, checkpoint_id=Path(folder) / name)
    distributed.destroy_process_group()


main(sys.argv[1])
