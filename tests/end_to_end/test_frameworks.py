"""The examples, run against the real packages, and what each framework does to an optimizer."""

import copy
import runpy
import shutil
import socket
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lawa_opt import LAWA

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
MISSING = "the frameworks extra is not installed: pip install lawa-opt[frameworks]"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing may be downloaded or reported: any connection fails the test."""

    def refuse(_, address):
        raise AssertionError(f"an example connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def package(name):
    """A framework, imported without regard to the warnings that its own imports give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=MISSING, exc_type=ImportError)


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def naive_means(optimizer_state):
    """Float64 mean of each parameter's saved snapshots."""
    means = []
    for entry in optimizer_state["state"].values():
        snapshots = [entry[f"lawa_{i}"].double() for i in range(entry["lawa_held"])]
        means.append((sum(snapshots) / len(snapshots)).float())
    return means


def assert_same_training(opt, other):
    """The same live weights, position and snapshots, bit for bit."""
    assert vars(opt.schedule) == vars(other.schedule)
    state, others = opt.state_dict()["state"], other.state_dict()["state"]
    for group, others_group in zip(opt.param_groups, other.param_groups, strict=True):
        for mine, its in zip(group["params"], others_group["params"], strict=True):
            assert torch.equal(mine, its)
    for index, entry in state.items():
        for name, value in entry.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(value, others[index][name]), name


lightning_noise = pytest.mark.filterwarnings(
    # Lightning's own use of what torch has deprecated; its advice on more processes and logging,
    # which a test this short has no need of, and on a folder that is there to be resumed from.
    "ignore:.*LeafSpec.* is deprecated",
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:The number of training batches .* is smaller than the logging interval",
    # A machine with SLURM on it, where tests are not started by it.
    "ignore:The `srun` command is available",
)
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


@lightning_noise
def test_lightning_validates_and_checkpoints_the_average(tmp_path):
    package("lightning")
    module = example("lightning_callback")
    trainer, model = module["main"](tmp_path / "run", epochs=2, **QUIET)
    saved = torch.load(tmp_path / "run" / "epoch=1.ckpt", weights_only=False)
    means = naive_means(saved["optimizer_states"][0])
    for weights, mean in zip(saved["state_dict"].values(), means, strict=True):
        torch.testing.assert_close(weights, mean, rtol=1e-6, atol=1e-7)
    x, y = trainer.val_dataloaders.dataset[:]
    model.load_state_dict(saved["state_dict"])
    loss = nn.functional.cross_entropy(model.net(x), y).detach()
    scores = next(c for c in saved["callbacks"].values() if "current_score" in c)
    torch.testing.assert_close(scores["current_score"], loss)


@lightning_noise
def test_lightning_proxies_see_and_change_the_same_lawa(tmp_path):
    lightning = package("lightning")
    seen = []

    class Manual(lightning.LightningModule):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 1)

        def configure_optimizers(self):
            return LAWA(torch.optim.SGD(self.parameters(), lr=0.1), k=2, every=1)

        def training_step(self, batch, _):
            proxy = self.optimizers()
            proxy.train()
            proxy.zero_grad()
            self.manual_backward(self.net(batch).sum())
            proxy.step()
            proxy.eval()
            seen.append((proxy.num_snapshots, proxy.schedule.steps, len(proxy.optimizer.swaps)))

    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET
    )
    trainer.fit(Manual(), torch.utils.data.DataLoader(torch.ones(3, 3)))
    assert seen == [(1, 1, 1), (2, 2, 1), (2, 3, 1)]


@lightning_noise
def test_fabric_proxies_see_and_change_the_same_lawa():
    fabric_package = package("lightning.fabric")
    fabric = fabric_package.Fabric(accelerator="cpu", devices=1)
    model = nn.Linear(3, 1)
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=2, every=1)
    wrapped, proxy = fabric.setup(model, opt)
    for _ in range(3):
        proxy.zero_grad()
        fabric.backward(wrapped(torch.ones(1, 3)).sum())
        proxy.step()
    assert (opt.num_snapshots, proxy.num_snapshots, opt.schedule.steps) == (2, 2, 3)
    live = copy.deepcopy(model.state_dict())
    with proxy.averaged(), pytest.raises(RuntimeError, match="averaged weights are in the model"):
        opt.step()
    proxy.eval()
    assert opt.swaps
    assert not torch.equal(model.weight, live["weight"])
    opt.train()
    assert torch.equal(model.weight, live["weight"])
    saved = proxy.state_dict()
    assert saved["state"][0]["lawa_held"] == 2
    opt.window.clear()
    proxy.load_state_dict(saved)
    assert opt.num_snapshots == 2


def test_trainer_evaluates_and_saves_the_average_and_resumes(tmp_path):
    package("transformers")
    safetensors = pytest.importorskip("safetensors.torch", reason=MISSING)
    module = example("transformers_trainer")
    options = {"steps": 12, "every": 6, "disable_tqdm": True}
    trainer = module["main"](tmp_path / "run", **options)

    checkpoint = tmp_path / "run" / "checkpoint-6"
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    means = naive_means(saved)
    weights = safetensors.load_file(checkpoint / "model.safetensors")
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    lawa = trainer.optimizer.optimizer
    order = [names[id(p)] for group in lawa.param_groups for p in group["params"]]
    for name, mean in zip(order, means, strict=True):
        torch.testing.assert_close(weights[name], mean, rtol=1e-6, atol=1e-7)
    assert not torch.equal(saved["state"][0]["lawa_live"], weights[order[0]])
    average = module["GPT2LMHeadModel"].from_pretrained(checkpoint)
    evaluations = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    plain = module["Trainer"](average, trainer.args, eval_dataset=trainer.eval_dataset)
    assert plain.evaluate()["eval_loss"] == pytest.approx(evaluations[0], rel=1e-5)

    shutil.copytree(checkpoint, tmp_path / "again" / "checkpoint-6")
    resumed = module["main"](tmp_path / "again", resume=True, **options).optimizer.optimizer
    assert resumed.schedule.steps == 12
    lawa.train()
    resumed.train()
    assert_same_training(lawa, resumed)


def test_accelerate_loads_a_state_with_the_average_in_the_model(tmp_path):
    accelerator = package("accelerate").Accelerator(cpu=True)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=2, every=1)
    model, opt = accelerator.prepare(model, opt)

    def train(steps):
        opt.train()
        for _ in range(steps):
            opt.zero_grad()
            accelerator.backward(model(torch.ones(1, 3)).square().sum())
            opt.step()
        live = [parameter.detach().clone() for parameter in model.parameters()]
        opt.eval()
        return live

    live = train(3)
    accelerator.save_state(tmp_path / "state")
    expected = train(2)
    accelerator.load_state(tmp_path / "state")
    opt.train()
    assert all(map(torch.equal, live, model.parameters()))
    assert all(map(torch.equal, expected, train(2)))


def test_accelerate_keeps_schedule_and_hands_on_eval_and_train(tmp_path):
    package("accelerate")
    pytest.importorskip("sklearn", reason=MISSING)
    module = example("accelerate_loop")
    model, opt = module["main"](tmp_path / "state", epochs=3)
    lawa = opt.optimizer
    assert isinstance(lawa, LAWA)
    assert lawa.swaps, "eval() has reached it and put the average in"
    assert lawa.schedule.steps == 3 * 1200 // 50
    assert lawa.base.param_groups[0]["lr"] == pytest.approx(0.2 * (0.1 + 0.9 * 72 / 100))
    for weights, mean in zip(model.parameters(), naive_means(lawa.state_dict()), strict=True):
        torch.testing.assert_close(weights, mean, rtol=1e-6, atol=1e-7)

    module["main"](tmp_path / "state", epochs=2)
    _, resumed = module["main"](tmp_path / "state", epochs=3, done=2)
    opt.train()
    resumed.train()
    assert_same_training(lawa, resumed.optimizer)
