"""What a comparison relies on in a workload, tried out: most of all for workloads of your own."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from baselines.workloads.base import Workload, evaluating


def errors(workload: Workload) -> list[str]:
    """Return what this workload does otherwise than `Workload` says, a line each.

    Takes one training step and one evaluation. The test part is not read.
    """
    torch.manual_seed(0)
    # One model at a time: two, and what the step adds, may be more than there is room for.
    first = _digests(workload.make_model())
    torch.manual_seed(0)
    model = workload.make_model().train()
    return [
        *_in_the_weights(model, first),
        *_in_the_batches(workload),
        *_in_the_step(workload, model),
        *_in_the_evaluation(workload, model),
        *_in_the_statistics(workload, model),
        *_in_the_offers(workload, model),
    ]


def _digests(model: nn.Module) -> dict[str, str]:
    """Return what tells a model's weights and buffers from others, without a copy of them all."""
    return {name: _digest(value) for name, value in model.state_dict().items()}


def _digest(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    numbers = value.detach().cpu().contiguous().reshape(-1)
    content = numbers.view(torch.uint8).numpy().data if numbers.numel() else b""
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"


def _in_the_weights(model: nn.Module, first: dict[str, str]) -> Iterator[str]:
    if _digests(model) != first:
        yield (
            "make_model: the same seed of torch gave other weights; draw them from torch's global "
            "random generator alone"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        yield "make_model: no parameter requires a gradient"


def _in_the_batches(workload: Workload) -> Iterator[str]:
    before = torch.get_rng_state()
    batches = list(itertools.islice(workload.batches(0), 3))
    if len(batches) < 3:
        yield f"batches: they must be endless; there were {len(batches)}"
        return
    if not torch.equal(torch.get_rng_state(), before):
        yield (
            "batches: they draw from torch's global random generator; use a torch.Generator seeded "
            "from `seed`"
        )
    if not _equal(batches[0], next(workload.batches(0))):
        yield "batches: batches(0) gave other batches the second time"
    if not _equal(batches[2], next(workload.batches(0, 2))):
        yield "batches: batches(0, 2) does not begin with the third batch of batches(0)"
    if all(map(_equal, batches, itertools.islice(workload.batches(1), 3))):
        yield "batches: seeds 0 and 1 have the same batches"


def _equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def _in_the_step(workload: Workload, model: nn.Module) -> Iterator[str]:
    optimizer = workload.make_optimizer(model, workload.learning_rate)
    own = {id(parameter) for parameter in model.parameters()}
    if not own & {id(p) for group in optimizer.param_groups for p in group["params"]}:
        yield "make_optimizer: the optimizer has none of the model's parameters"
    loss = workload.loss(model, next(workload.batches(0)))
    if loss.shape != () or not loss.isfinite():
        yield f"loss: must be one finite number; it is {loss.detach()!s:.60}"
    elif not loss.requires_grad:
        yield "loss: has no gradient; was it detached, or computed without one?"
    else:
        loss.backward()
        optimizer.step()
    if not model.training:
        yield "loss: leaves the model in evaluation mode"


def _in_the_evaluation(workload: Workload, model: nn.Module) -> Iterator[str]:
    before = _digests(model)
    random = torch.get_rng_state()
    model.train()
    value = workload.evaluate(model)
    if not isinstance(value, float) or not math.isfinite(value):
        yield f"evaluate: must return a finite float; it returned {value!r:.60}"
    if not model.training:
        yield "evaluate: leaves the model in evaluation mode"
    if _digests(model) != before:
        yield "evaluate: changes the model's weights or buffers; was it in training mode?"
    if not torch.equal(torch.get_rng_state(), random):
        yield "evaluate: draws from torch's global random generator"


def _in_the_statistics(workload: Workload, model: nn.Module) -> Iterator[str]:
    # The base class that torch's own update_bn looks for.
    base: type[nn.Module] = nn.modules.batchnorm._BatchNorm
    if any(isinstance(module, base) for module in model.modules()) and not len(workload.bn_batches):
        yield "bn_batches: a model with BatchNorm needs some; there are none"


def _in_the_offers(workload: Workload, model: nn.Module) -> Iterator[str]:
    batch = next(workload.batches(0))
    with evaluating(model):
        if workload.losses:
            losses = workload.losses(model, batch)
            if losses.shape != (len(batch[0]),) or not losses.isfinite().all():
                yield (
                    f"losses: must be {len(batch[0])} finite numbers, one an example; they are of "
                    f"shape {tuple(losses.shape)}"
                )
        if workload.logits and (logits := workload.logits(model, batch)).dim() != 2:
            yield f"logits: must be of shape (targets, classes); it is {tuple(logits.shape)}"
    if workload.blocks and (found := len(workload.blocks(model))) != workload.num_blocks:
        yield f"blocks: the model has {found} of them, and num_blocks is {workload.num_blocks}"
    if (examples := workload.examples) is None:
        return
    if len(batch) != 3 or not 0 <= int(batch[2].min()) <= int(batch[2].max()) < examples.count:
        yield (
            "examples: the third part of a batch must be the ids of its examples, numbers below "
            f"the count of {examples.count}"
        )
    elif not _equal(examples.get(batch[2]), examples.get(batch[2])):
        yield "examples: get gave the same ids another batch the second time"
    elif [part.shape for part in examples.get(batch[2])] != [part.shape for part in batch]:
        yield "examples: get gives another shape than a batch has"
