"""The callback for Lightning, in the real Trainer: what it reads, saves and goes on from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lawa_opt import LAWA
from tests.support.no_network import refuse_connections

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip(
        "lightning.pytorch", reason="the frameworks extra is not installed", exc_type=ImportError
    )
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from lawa_opt.lightning import LIVE_WEIGHTS, LAWACallback

pytestmark = [
    pytest.mark.slow,
    # Advice on more processes, logging and checkpoints, and on what else a short test leaves out.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]

K, EPOCHS, STEPS_AN_EPOCH = 3, 3, 4


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_connections(monkeypatch, "Lightning")


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Noted(lightning.LightningModule):
    """A model with BatchNorm that writes down its weights after each step, and as validated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.live: list[dict[str, Tensor]] = []
        self.validated: list[tuple[int, dict[str, Tensor]]] = []

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.loss(batch)

    def on_train_batch_end(self, *_: Any) -> None:
        self.live.append(weights_of(self.net))

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("loss", self.loss(batch))
        self.validated.append((len(self.live), weights_of(self.net)))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(opt, 0.5, total_iters=8)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loaders() -> tuple[DataLoader, DataLoader]:
    torch.manual_seed(1)
    x = torch.randn(64, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    return DataLoader(data, batch_size=16), DataLoader(data, batch_size=64)


def fit(module: Any, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
        "num_sanity_val_steps": 1,
    }
    trainer = lightning.Trainer(callbacks=list(callbacks), **(settings | options))
    # Files of the Trainer's own, which hold more than weights.
    trainer.fit(module, *loaders(), ckpt_path=ckpt_path, weights_only=False)
    return trainer


def mean_of(snapshots: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """In float64, of the k latest; the latest of what is counted."""
    latest = snapshots[-K:]
    return {
        name: sum(each[name].double() for each in latest) / len(latest)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in latest[-1].items()
    }


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].double(), other[name].double(), atol=1e-6) for name in one
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def all_same(some: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> bool:
    return len(some) == len(others) and all(map(same, some, others))


def net_of(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("net."): tensor for name, tensor in state_dict.items()}


def test_two_lines_validate_and_end_with_the_average_of_the_same_training() -> None:
    plain, averaged = Noted(), Noted()
    fit(plain)
    trainer = fit(averaged, LAWACallback(K, every=1))
    assert len(plain.live) == EPOCHS * STEPS_AN_EPOCH
    assert all_same(plain.live, averaged.live)
    # The first is the Trainer's check before any step.
    assert [steps for steps, _ in averaged.validated] == [0, 4, 8, 12]
    for steps, validated in averaged.validated[1:]:
        assert close(validated, mean_of(plain.live[:steps]))
    assert close(weights_of(averaged.net), mean_of(plain.live))
    assert isinstance(trainer.optimizers[0], LAWA)


def test_a_next_fit_goes_on_from_the_live_weights() -> None:
    plain, averaged = Noted(), Noted()
    callback = LAWACallback(K, every=1)
    for module, callbacks in ((plain, ()), (averaged, (callback,))):
        fit(module, *callbacks, max_epochs=1)
        fit(module, *callbacks, max_epochs=2)
    assert all_same(plain.live, averaged.live)


@pytest.mark.parametrize("saved_at", ["after validation", "between validations"])
def test_a_checkpoint_is_of_the_average_and_resumes_as_if_never_stopped(
    saved_at: str, tmp_path: Path
) -> None:
    steps = {"after validation": {}, "between validations": {"every_n_train_steps": 4}}[saved_at]
    whole = Noted()
    checkpoints = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **steps)
    fit(whole, LAWACallback(K, every=1), checkpoints)
    # At the end of an epoch, for in the middle of one Lightning begins with its first batches anew.
    at = 2 * STEPS_AN_EPOCH
    path = tmp_path / f"step={at}.ckpt"
    saved = torch.load(path, weights_only=False)
    assert (LIVE_WEIGHTS in saved) == (saved_at == "between validations")
    assert close(net_of(saved["state_dict"]), mean_of(whole.live[:at]))
    loaded = Noted.load_from_checkpoint(path, weights_only=False)
    assert same(weights_of(loaded.net), net_of(saved["state_dict"]))

    resumed = Noted()
    again = ModelCheckpoint(tmp_path / "again", "{step}", save_top_k=-1, **steps)
    fit(resumed, LAWACallback(K, every=1), again, ckpt_path=path)
    assert all_same(whole.live[at:], resumed.live)
    assert same(weights_of(whole.net), weights_of(resumed.net))
    with pytest.warns(UserWarning, match="add the following callbacks:.*LAWACallback"):
        fit(Noted(), again, ckpt_path=path)


def test_a_run_without_it_can_adopt_it_at_a_resume(tmp_path: Path) -> None:
    plain, adopted = Noted(), Noted()
    fit(plain, ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4))
    again = ModelCheckpoint(tmp_path / "again", "{step}", save_top_k=-1, every_n_train_steps=4)
    fit(adopted, LAWACallback(K, every=1), again, ckpt_path=tmp_path / "step=4.ckpt")
    assert all_same(plain.live[4:], adopted.live)
    assert close(weights_of(adopted.net), mean_of(plain.live))


def test_trainer_test_and_validate_read_the_average_of_a_file(tmp_path: Path) -> None:
    module = Noted()
    trainer = fit(
        module,
        LAWACallback(K, every=1),
        ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6),
    )
    other = Noted()
    trainer.validate(
        other, loaders()[1], ckpt_path=tmp_path / "step=6.ckpt", verbose=False, weights_only=False
    )
    assert close(other.validated[-1][1], mean_of(module.live[:6]))


class Manual(Noted):
    """Of two optimizers, one with a schedule."""

    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        first, last = self.net[0].parameters(), self.net[3].parameters()
        sgd = torch.optim.SGD([*first, *self.net[1].parameters()], lr=0.1)
        schedules = [torch.optim.lr_scheduler.StepLR(sgd, 1)]
        return [sgd, torch.optim.AdamW(last, lr=0.01)], schedules

    def training_step(self, batch: Any, _: int) -> None:
        loss = self.loss(batch)
        optimizers = self.optimizers()
        for opt in optimizers:
            opt.zero_grad()
        self.manual_backward(loss)
        for opt in optimizers:
            opt.step()


class Clamped(Noted):
    def on_train_epoch_start(self) -> None:
        self.net[0].weight.data.clamp_(-0.1, 0.1)


@pytest.mark.parametrize("module", [Manual, Clamped])
def test_several_optimizers_and_a_hook_that_changes_weights(module: Any) -> None:
    plain, averaged = module(), module()
    fit(plain)
    fit(averaged, LAWACallback(K, every=1))
    assert all_same(plain.live, averaged.live)
    assert close(weights_of(averaged.net), mean_of(plain.live))


class RaisesInValidation(Noted):
    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        raise ArithmeticError("of a metric")


def test_an_error_in_validation_leaves_the_live_weights() -> None:
    module = RaisesInValidation()
    with pytest.raises(ArithmeticError, match="of a metric"):
        fit(module, LAWACallback(K, every=1), num_sanity_val_steps=0)
    assert same(weights_of(module.net), module.live[-1])
    assert not same(module.validated[-1][1], module.live[-1])


def test_accumulated_gradients_and_clipping_collect_once_an_update() -> None:
    plain, averaged = Noted(), Noted()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    fit(plain, **options)
    trainer = fit(averaged, LAWACallback(K, every=1), **options)
    assert all_same(plain.live, averaged.live)
    assert trainer.optimizers[0].schedule.steps == EPOCHS * STEPS_AN_EPOCH / 2


@pytest.mark.parametrize("module", [Noted, Manual])
def test_curves_keep_the_names_of_the_optimizers(module: Any, tmp_path: Path) -> None:
    def curves(folder: str, *callbacks: Any) -> list[str]:
        logger = CSVLogger(tmp_path / folder)
        options = {"max_epochs": 1, "log_every_n_steps": 1}
        fit(module(), *callbacks, LearningRateMonitor(), logger=logger, **options)
        [file] = (tmp_path / folder).rglob("metrics.csv")
        return file.read_text().splitlines()[0].split(",")

    plain = curves("plain")
    assert "lr-SGD" in plain
    assert curves("averaged", LAWACallback(K)) == plain


def test_what_would_be_silent_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="k must be"):
        LAWACallback(0)

    class Wrapped(Noted):
        def configure_optimizers(self) -> Any:
            return LAWA(torch.optim.SGD(self.parameters(), lr=0.1))

    with pytest.raises(ValueError, match="would wrap it once more"):
        fit(Wrapped(), LAWACallback(K))
    with pytest.warns(UserWarning, match="no snapshot was collected"):
        fit(Noted(), LAWACallback(K, start=1000))
    weights = ModelCheckpoint(tmp_path, save_weights_only=True, every_n_train_steps=2)
    with pytest.warns(UserWarning, match="saves the live weights"):
        fit(Noted(), LAWACallback(K, every=1), weights)


def test_a_lawa_without_the_callback_is_told_of_once(tmp_path: Path) -> None:
    class Wrapped(Noted):
        def configure_optimizers(self) -> Any:
            return LAWA(torch.optim.SGD(self.parameters(), lr=0.1), k=K, every=1)

    class Reads(Wrapped):
        def on_validation_start(self) -> None:
            self.trainer.optimizers[0].eval()

        def on_train_batch_start(self, *_: Any) -> None:
            self.trainer.optimizers[0].train()

    def said(module: Any, *callbacks: Any, folder: str) -> int:
        checkpoints = ModelCheckpoint(tmp_path / folder, every_n_train_steps=3)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(module, *callbacks, checkpoints, num_sanity_val_steps=0, val_check_interval=2)
        return sum("add lawa_opt.lightning.LAWACallback" in str(each.message) for each in caught)

    assert said(Wrapped(), folder="alone") == 1
    assert said(Reads(), folder="by hand") == 0
    assert said(Noted(), LAWACallback(K, every=1), folder="with it") == 0
