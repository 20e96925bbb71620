"""Models as graphs: each in its own weights, though one that is alike is traced once."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines.training import exported_model
from baselines.training.exported_model import EXAMPLE, GRAPH, export_model
from baselines.workloads import digits

SCALE = 1.0


class Limited(nn.Module):
    """A layer, and what else a result may depend on; nothing of the example is at the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.limit = 1e6
        self.shift = torch.zeros(2)
        self.register_buffer("most", torch.tensor(1e6), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.layer(x).clamp(max=self.limit) * SCALE + self.shift
        return torch.minimum(found, self.most)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that are traced, of which none was before."""
    monkeypatch.setattr(exported_model, "_latest", exported_model._LatestGraph())
    models, export = [], torch.export.export

    def counted(model: nn.Module, *arguments, **options):
        models.append(model)
        return export(model, *arguments, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    return models


def assert_exported(model: nn.Module, folder: Path, inputs: torch.Tensor) -> None:
    """What was written gives the model's own outputs to the last bit, also of another batch."""
    assert export_model(model, folder, inputs) is None
    graph = torch.export.load(folder / GRAPH).module()
    more = torch.cat([inputs, 1e7 * inputs.abs() if inputs.is_floating_point() else inputs])
    model.eval()
    with torch.no_grad():
        for batch in (inputs, more):
            assert torch.equal(graph(batch), model(batch))
    model.train()


def model_of(seed: int) -> Limited:
    torch.manual_seed(seed)
    return Limited().train()


@pytest.mark.slow
def test_models_that_are_alike_are_traced_once_and_each_has_its_own_weights(
    tmp_path: Path, traced: list[nn.Module]
) -> None:
    workload = digits.load()
    inputs = next(workload.batches(0))[0]
    for seed in range(3):
        torch.manual_seed(seed)
        model = workload.make_model().train()
        model(inputs)
        assert_exported(model, tmp_path / "model", inputs)
        assert model.training
    assert len(traced) == 1


CHANGES = {
    "a limit that no example meets": lambda model: setattr(model, "limit", 1e3),
    "a tensor that is no buffer": lambda model: setattr(model, "shift", torch.ones(2)),
    "a buffer that is not kept": lambda model: model.most.fill_(1e3),
    "a layer that is frozen": lambda model: model.layer.requires_grad_(False),
    "a layer of another kind": lambda model: setattr(model, "layer", nn.Linear(3, 2, bias=False)),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_made_of_anything_else_is_traced_anew(
    change: str, tmp_path: Path, traced: list[nn.Module]
) -> None:
    inputs = torch.randn(4, 3)
    assert_exported(model_of(0), tmp_path / "one", inputs)
    other = model_of(1)
    CHANGES[change](other)
    assert_exported(other, tmp_path / "other", inputs)
    assert len(traced) == 2


def test_a_model_that_depends_on_what_lies_outside_is_traced_anew(
    tmp_path: Path, traced: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = torch.randn(4, 3)
    assert_exported(model_of(0), tmp_path / "one", inputs)
    monkeypatch.setattr(f"{__name__}.SCALE", 3.0)
    assert_exported(model_of(0), tmp_path / "other", inputs)
    assert len(traced) == 2


@pytest.mark.slow
def test_a_batch_of_another_form_and_a_model_that_no_pickle_takes_are_exported_too(
    tmp_path: Path,
) -> None:
    assert_exported(model_of(0), tmp_path / "four", torch.randn(4, 3))
    assert_exported(model_of(0), tmp_path / "six", torch.randn(6, 3))
    for seed in (1, 2):
        model = model_of(seed)
        model.note = lambda: None
        assert_exported(model, tmp_path / "odd", torch.randn(4, 3))


def test_no_weights_are_held_after_an_export(tmp_path: Path) -> None:
    model = model_of(0)
    assert_exported(model, tmp_path / "model", torch.randn(4, 3))
    weight = weakref.ref(model.layer.weight)
    del model
    gc.collect()
    assert weight() is None


def test_the_example_is_that_of_the_model(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        inputs = torch.full((4, 3), value)
        assert_exported(model_of(0), tmp_path / "model", inputs)
        assert (tmp_path / "model" / EXAMPLE).read_text() == str([[value] * 3] * 2)


def test_a_graph_of_parts_of_rows_takes_whole_ones(tmp_path: Path) -> None:
    tokens = torch.randint(9, (4, 6))
    model = nn.Sequential(nn.Embedding(9, 2), nn.Flatten())
    assert export_model(model, tmp_path / "model", tokens[:, :-1]) is None
    whole = tokens[:2, 1:].contiguous()
    graph = torch.export.load(tmp_path / "model" / GRAPH).module()
    assert torch.equal(graph(whole), model(whole))
