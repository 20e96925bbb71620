"""Export a model as a graph, with PyTorch alone: what a training leaves for MLflow to have."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

# Where MLflow looks for the graph.
GRAPH = "data/model.pt2"
EXAMPLE = "input_example.json"
SHAPES = "shapes.json"


def export_model(model: nn.Module, folder: Path, example_input: Tensor) -> str | None:
    """Write a model as a graph (pt2), which needs no pickle, with an example of its input.

    No result depends on it, so where it cannot be done the reason is returned.

    Args:
        model: it is exported on the CPU and in evaluation mode, whatever it is in.
        folder: is replaced, in one that is there.
        example_input: a batch of two or more, so that the size of a batch stays free.
    """
    try:
        _export(model, folder, example_input)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _export(model: nn.Module, folder: Path, example_input: Tensor) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    graph = folder / GRAPH
    folder.mkdir()
    graph.parent.mkdir()
    example = example_input.detach().cpu()
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(example)
        program = torch.export.export(model, (example,), dynamic_shapes=({0: Dim.AUTO},))
    finally:
        model.train(was_training)
    torch.export.save(program, graph)
    (folder / EXAMPLE).write_text(json.dumps(example[:2].tolist()))
    shapes = {
        name: {"dtype": str(tensor.numpy().dtype), "shape": [-1, *tensor.shape[1:]]}
        for name, tensor in (("inputs", example), ("outputs", output))
    }
    (folder / SHAPES).write_text(json.dumps({**shapes, "torch": torch.__version__}))
