"""A stand-in for AlgoPerf's harness: its calls in their order, over a small workload.

As submission_runner.py and checkpoint_utils.py of mlcommons/algorithmic-efficiency make them under
the self-tuning rules. `torchrun ... algoperf_harness.py` checks two ranks.
"""

from __future__ import annotations

import copy
import enum
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

# Before the group, which it would keep: see baselines/training/distributed.py.
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

SUBMISSION = Path(__file__).parents[2] / "examples" / "algoperf" / "submission.py"
BATCH = 12


class ForwardPassMode(enum.Enum):
    TRAIN = 0
    EVAL = 1


def submission() -> Any:
    """Return the submission's functions, imported over a stand-in of `algoperf`."""
    algoperf = ModuleType("algoperf")
    algoperf.spec = SimpleNamespace(ForwardPassMode=ForwardPassMode)  # type: ignore[attr-defined]
    with patch.dict(sys.modules, {"algoperf": algoperf}):
        return SimpleNamespace(**runpy.run_path(str(SUBMISSION)))


def bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


class Workload:
    """Points of three classes; some of each batch do not count, and differ between the ranks."""

    step_hint = 40
    loss_type = None
    model_params_types = None

    def __init__(self, *, norm: bool = True) -> None:
        self.norm = norm

    def init_model_fn(self, rng: Any) -> tuple[nn.Module, None]:
        torch.manual_seed(0)
        norm = [nn.BatchNorm1d(8)] if self.norm else []
        model: nn.Module = nn.Sequential(nn.Linear(4, 8), *norm, nn.ReLU(), nn.Linear(8, 3))
        return DistributedDataParallel(model) if dist.is_initialized() else model, None

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step: of all ranks in one process, else the rank's part."""
        generator = torch.Generator().manual_seed(step)
        batch = {
            "inputs": torch.randn(BATCH, 4, generator=generator),
            "targets": torch.randint(3, (BATCH,), generator=generator),
            "weights": (torch.arange(BATCH) < BATCH - 1 - step % 3).float(),
        }
        if not dist.is_initialized():
            return batch
        rank, ranks = dist.get_rank(), dist.get_world_size()
        return {name: tensor.chunk(ranks)[rank] for name, tensor in batch.items()}

    def _build_input_queue(self, step: int) -> Iterator[dict[str, Tensor]]:
        while True:
            yield self.batch(step)
            step += 1

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: dict[str, Tensor],
        model_state: Any,
        mode: ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = 0.0,
    ) -> tuple[Tensor, None]:
        trains = mode is ForwardPassMode.TRAIN
        params.train(trains)
        with torch.set_grad_enabled(trains):
            return params(augmented_and_preprocessed_input_batch["inputs"]), None

    def loss_fn(
        self,
        label_batch: Tensor,
        logits_batch: Tensor,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        losses = F.cross_entropy(logits_batch, label_batch, reduction="none")
        mask = torch.ones_like(losses) if mask_batch is None else mask_batch
        summed = (losses * mask).sum()
        return {"summed": summed, "n_valid_examples": mask.sum(), "per_example": losses}

    def eval_model(self, params: nn.Module, model_state: Any) -> dict[str, Tensor]:
        """Return what is evaluated, after a forward pass in evaluation mode."""
        held = copy.deepcopy(bare(params).state_dict())
        batch = self.batch(10_000)
        self.model_fn(params, batch, model_state, ForwardPassMode.EVAL, None, False)
        return held


def train_once(
    entry: Any,
    workload: Workload,
    steps: int,
    evaluate_at: Sequence[int],
    checkpoint: Path | None = None,
) -> tuple[dict[int, dict[str, Tensor]], Any, nn.Module]:
    """Train as the harness does, and go on from the checkpoint if there is one.

    Returns:
        What was evaluated after which step, the optimizer state, and the model.
    """
    model, model_state = workload.init_model_fn(None)
    state = entry.init_optimizer_state(workload, model, model_state, None, None)
    step, results = 0, {}
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint)
        bare(model).load_state_dict(saved["model_params"])
        for key in state:
            state[key].load_state_dict(saved["optimizer_state"][key])
        step = saved["global_step"]
    queue = workload._build_input_queue(step)
    while step < steps:
        batch = entry.data_selection(workload, queue, state, model, model_state, None, step, None)
        common: dict[str, Any] = {
            "workload": workload, "current_params_types": workload.model_params_types,
            "hyperparameters": None, "loss_type": workload.loss_type, "eval_results": [],
            "rng": None,
        }  # fmt: skip
        state, model, model_state = entry.update_params(
            **common,
            current_param_container=model,
            model_state=model_state,
            batch=batch,
            optimizer_state=state,
            global_step=step,
        )
        step += 1
        if step in evaluate_at:
            state, model, model_state = entry.prepare_for_eval(
                **common,
                current_param_container=model,
                model_state=model_state,
                optimizer_state=state,
                global_step=step,
            )
            results[step] = workload.eval_model(model, model_state)
            if checkpoint is not None:
                states = {key: part.state_dict() for key, part in state.items()}
                weights = bare(model).state_dict()
                torch.save(
                    {"model_params": weights, "optimizer_state": states, "global_step": step},
                    checkpoint,
                )
    return results, state, model


def plain_history(entry: Any, workload: Workload, steps: int) -> list[dict[str, Tensor]]:
    """Return weights and buffers after each step of the same training without LAWA."""
    model, _ = workload.init_model_fn(None)
    opt = torch.optim.AdamW(
        model.parameters(), lr=entry.RATE, betas=entry.BETAS, weight_decay=entry.WEIGHT_DECAY
    )
    history = []
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = entry.RATE * entry.factor(step, workload.step_hint)
        batch = workload.batch(step)
        opt.zero_grad()
        logits, _ = workload.model_fn(model, batch, None, ForwardPassMode.TRAIN, None, True)
        losses = workload.loss_fn(batch["targets"], logits, batch["weights"])
        count, ranks = losses["n_valid_examples"], 1
        if dist.is_initialized():
            ranks = dist.get_world_size()
            dist.all_reduce(count)
        (losses["summed"] * ranks / count).backward()
        opt.step()
        history.append(copy.deepcopy(bare(model).state_dict()))
    return history


def naive_mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean in float64, and of integers the newest."""
    return {
        name: (
            torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
        )
        for name, tensor in states[-1].items()
    }


def check_evaluated(
    entry: Any, results: dict[int, dict[str, Tensor]], history: list[dict[str, Tensor]]
) -> None:
    """Check that the live weights are evaluated at first, and then the mean of the window.

    In the first fifty steps, "auto" collects after each one.
    """
    for step, held in results.items():
        full = step >= entry.K
        want = naive_mean(history[step - entry.K : step]) if full else history[step - 1]
        if dist.is_initialized() and dist.get_rank():
            # DDP takes the statistics of rank 0, but not in the first step after an evaluation.
            held, want = (
                {n: t for n, t in each.items() if "running" not in n} for each in (held, want)
            )
        torch.testing.assert_close(held, want, rtol=1e-6, atol=1e-7)


def main() -> None:
    dist.init_process_group("gloo")
    entry = submission()
    workload = Workload()
    results, state, model = train_once(entry, workload, 14, (3, 8, 12))
    history = plain_history(entry, workload, 14)
    check_evaluated(entry, results, history)
    state["optimizer"].train()
    torch.testing.assert_close(bare(model).state_dict(), history[-1], rtol=0, atol=0)
    # Without BatchNorm, two ranks train as one process with the batches of both.
    found, _, _ = train_once(entry, Workload(norm=False), 8, (8,))
    dist.destroy_process_group()
    alone, _, _ = train_once(entry, Workload(norm=False), 8, (8,))
    torch.testing.assert_close(found[8], alone[8], rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main()
