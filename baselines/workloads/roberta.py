"""RoBERTa's masked language modelling, on WikiText-103 or any text."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.workloads.base import (
    Batch,
    Workload,
    WorkloadError,
    default_device,
    evaluating,
    generator,
)
from baselines.workloads.data import corpus, tokens
from baselines.workloads.data.corpus import Corpus

MASKED_SHARE = 0.15
EVALUATION_SEQUENCES = 512
IGNORED = -100  # The target that cross entropy leaves out.


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the encoder and its batches; `context` and `vocabulary` in tokens, `batch` in rows."""

    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int
    batch: int


# Base as in Liu et al. (arXiv 1907.11692), but for the batch; mini trains on a CPU.
SIZES = {
    "mini": Size(layers=4, width=256, heads=4, context=128, vocabulary=4096, batch=16),
    "base": Size(layers=12, width=768, heads=12, context=512, vocabulary=50265, batch=16),
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the model and its masks need to know of a tokenizer: its size, and special tokens."""

    size: int
    begin: int
    padding: int
    end: int
    mask: int

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Read from a `tokenizers` tokenizer."""
        special = ("<s>", "<pad>", "</s>", "<mask>")
        return cls(tokenizer.get_vocab_size(), *map(tokenizer.token_to_id, special))


def masked(rows: Tensor, vocabulary: Vocabulary, draws: torch.Generator) -> Batch:
    """Return inputs and targets of rows of tokens, each put between a begin and an end token.

    Of 15% of the tokens, which are the targets, 80% are masked, 10% replaced by any token and 10%
    left as they are (Devlin et al., arXiv 1810.04805).

    Args:
        rows: (batch, time) int64.
        vocabulary: that of the tokens.
        draws: what all is drawn from.

    Returns:
        Two int64 tensors (batch, time + 2); targets are IGNORED where nothing is to be predicted.
    """
    is_masked, mask_action = torch.rand((2, *rows.shape), generator=draws)
    any_token = torch.randint(vocabulary.size, rows.shape, generator=draws)
    is_target = is_masked < MASKED_SHARE
    inputs = torch.where(is_target & (mask_action < 0.8), vocabulary.mask, rows)
    inputs = torch.where(is_target & (mask_action >= 0.9), any_token, inputs)
    begin = torch.full((len(rows), 1), vocabulary.begin)
    end = torch.full((len(rows), 1), vocabulary.end)
    targets = F.pad(rows.masked_fill(~is_target, IGNORED), (1, 1), value=IGNORED)
    return torch.cat([begin, inputs, end], dim=1), targets


def _rows(stream: Tensor, starts: Tensor, time: int) -> Tensor:
    return stream[starts[:, None] + torch.arange(time)].long()


def _batches(
    stream: Tensor, size: Size, vocabulary: Vocabulary, seed: int, start: int
) -> Iterator[Batch]:
    """Yield rows from anywhere in the text, masked anew each time: RoBERTa's dynamic masking."""
    time = size.context - 2
    for index in itertools.count(start):
        draws = generator(seed, index)
        starts = torch.randint(len(stream) - time + 1, (size.batch,), generator=draws)
        yield masked(_rows(stream, starts, time), vocabulary, draws)


def _held_out(stream: Tensor, size: Size, vocabulary: Vocabulary) -> Batch:
    """Return adjacent rows of a part, at most EVALUATION_SEQUENCES, masked once and for all."""
    time = size.context - 2
    count = min(EVALUATION_SEQUENCES, len(stream) // time)
    rows = _rows(stream, torch.arange(count) * (len(stream) - time) // max(1, count - 1), time)
    return masked(rows, vocabulary, generator(0))


def _nats(model: nn.Module, batch: Batch, reduction: str) -> Tensor:
    device = next(model.parameters()).device
    inputs, targets = (part.to(device) for part in batch)
    logits = model(input_ids=inputs).logits
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction
    )


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean nats of each row's own masked tokens; zero where it has none."""
    nats = _nats(model, batch, "none").view(batch[1].shape)
    return nats.sum(1) / (batch[1] != IGNORED).sum(1).clamp(min=1).to(nats.device)


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of the masked tokens: (masked tokens, vocabulary)."""
    inputs, targets = batch
    found = model(input_ids=inputs.to(next(model.parameters()).device)).logits
    return found[(targets != IGNORED).to(found.device)]  # type: ignore[no-any-return]


def evaluate(model: nn.Module, part: Batch, rows: int) -> float:
    """Return the mean nats per masked token, a batch of `rows` at a time."""
    with evaluating(model):
        batches = zip(*(side.split(rows) for side in part), strict=True)
        total = sum(float(_nats(model, batch, "sum")) for batch in batches)
    return total / int((part[1] != IGNORED).sum())


def make_model(size: Size, vocabulary: Vocabulary) -> nn.Module:
    """Make Transformers' own RobertaForMaskedLM, from a fresh configuration."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=vocabulary.size,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        # RoBERTa counts its positions from the id of padding plus one.
        max_position_embeddings=size.context + vocabulary.padding + 1,
        type_vocab_size=1,
        bos_token_id=vocabulary.begin,
        pad_token_id=vocabulary.padding,
        eos_token_id=vocabulary.end,
    )
    return RobertaForMaskedLM(config)


def workload(text: Corpus, size: Size, name: str, folder: Path | None = None) -> Workload:
    """Return the workload of a text at a size of your own; `folder` may hold a `tokenizer.json`.

    Raises:
        WorkloadError: transformers is not installed, or a part of the text is too short.
    """
    try:
        import transformers
    except ImportError as error:
        raise WorkloadError(
            f"transformers is needed for workload {name} ({error}): pip install "
            "'lawa-opt[real-workloads]'"
        ) from error
    pieces = tokens.tokenizer(text.train, size.vocabulary, folder)
    vocabulary = Vocabulary.of(pieces)
    parts = [tokens.encode(pieces, part) for part in (text.train, text.validation, text.test)]
    if min(map(len, parts)) < size.context:
        raise WorkloadError(
            f"{text.data['source']}: its shortest part has {min(map(len, parts))} tokens, and a "
            f"context has {size.context}: give more text or a smaller size"
        )
    train = parts[0]
    validation, test = (_held_out(part, size, vocabulary) for part in parts[1:])
    return Workload(
        name=name,
        metric="nats per masked token",
        make_model=lambda: make_model(size, vocabulary).to(default_device()),
        make_optimizer=lambda model, rate: torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
        ),
        # Kaddour (arXiv 2209.14981) takes 5e-4 with batches of 512, after a warm-up.
        learning_rate=1e-4,
        batches=lambda seed, start=0: _batches(train, size, vocabulary, seed, start),
        loss=lambda model, batch: _nats(model, batch, "mean"),
        losses=losses,
        logits=logits,
        evaluate=lambda model: evaluate(model, validation, size.batch),
        evaluate_test=lambda model: evaluate(model, test, size.batch),
        budget_seconds=3600.0,
        signature={
            "model": f"roberta-{size.layers}x{size.width}",
            "heads": size.heads,
            "vocabulary": vocabulary.size,
            "batch": size.batch,
            "context": size.context,
            "evaluation_sequences": len(validation[0]),
            "dtype": "float32",
            "device": default_device().type,
            "optimizer": "AdamW",
            "transformers": transformers.__version__,
        },
        data={**text.data, "tokens": sum(map(len, parts))},
    )


def load(data: Path | None = None, size: str = "base") -> Workload:
    """Return the workload of a text file or folder, or of WikiText-103 from the hub.

    A folder may bring a `tokenizer.json` along; otherwise byte pairs are learned from its training
    part.

    Raises:
        WorkloadError: the text cannot be had, or a library is missing.
    """
    text = corpus.read(data) if data else corpus.download()
    folder = data if data and data.is_dir() else None
    name = "roberta" if size == "base" else f"roberta-{size}"
    return workload(text, SIZES[size], name, folder)
