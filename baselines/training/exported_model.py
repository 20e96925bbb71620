"""Export a model as a graph, with PyTorch alone: what a training leaves for MLflow to have."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

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
    # A graph refuses inputs that lie in memory otherwise than its example, as a part of a row does.
    example = example_input.detach().cpu().contiguous()
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(example)
        _latest.save(model, example, output, graph)
    finally:
        model.train(was_training)
    (folder / EXAMPLE).write_text(json.dumps(example[:2].tolist()))
    shapes = {
        name: {"dtype": str(tensor.numpy().dtype), "shape": [-1, *tensor.shape[1:]]}
        for name, tensor in (("inputs", example), ("outputs", output))
    }
    (folder / SHAPES).write_text(json.dumps({**shapes, "torch": torch.__version__}))


class _LatestGraph:
    """The graph that was traced last: the methods of a comparison put other weights into it.

    Tracing takes seconds, and sees no weights, only what else a model is made of.
    """

    def __init__(self) -> None:
        self.traced_of: str | None = None
        self.program: ExportedProgram

    def save(self, model: nn.Module, example: Tensor, output: Tensor, path: Path) -> None:
        """Write the graph of a model with its weights; `output` is the model's of the example."""
        weights = model.state_dict(keep_vars=True)
        digest = _digest_without_weights(model, weights, example)
        if digest is None or digest != self.traced_of or not self.gives(output, example, weights):
            self.traced_of = None
            self.program = torch.export.export(model, (example,), dynamic_shapes=({0: Dim.AUTO},))
        torch.export.save(self.program, path)
        # No memory is held for weights between two methods.
        held = self.program.state_dict
        held.update({name: torch.empty_like(held[name], device="meta") for name in held})
        self.traced_of = digest

    def gives(self, output: Tensor, example: Tensor, weights: dict[str, Tensor]) -> bool:
        """Put weights in, and tell whether the graph then has the very output.

        It has not where a model depends on what lies outside of it, as a global variable.
        """
        held = self.program.state_dict
        held.update({name: weights[name] for name in held})
        try:
            with torch.no_grad():
                return torch.equal(self.program.module()(example), output)
        # A graph may refuse what the model takes.
        except Exception:
            return False


_latest = _LatestGraph()


def _digest_without_weights(
    model: nn.Module, weights: dict[str, Tensor], example: Tensor
) -> str | None:
    """Return a digest of what a graph is traced of; None where a model cannot be pickled.

    That is all of the model but the values of its state dict, and the form of its input. Models
    that are alike may have other digests, and are then traced anew.
    """
    names = {id(tensor): name for name, tensor in weights.items()}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if not isinstance(value, Tensor):
                return None
            form = type(value), value.dtype, value.shape, value.requires_grad
            if name := names.get(id(value)):
                return name, form
            bits = value.detach().contiguous().reshape(-1).view(torch.uint8)
            return bits.numpy().tobytes(), form

    stream = io.BytesIO()
    try:
        Pickler(stream).dump((model, example.dtype, example.shape))
    # Whatever a class of a user's own says to that.
    except Exception:
        return None
    return hashlib.sha256(stream.getvalue()).hexdigest()
