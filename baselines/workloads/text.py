"""Byte-level language modelling on any text: a small decoder in the manner of GPT-2."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.workloads.base import Batch, Workload, evaluating
from baselines.workloads.data import corpus
from baselines.workloads.data.corpus import Corpus

BATCH = 8
EVALUATION_SEQUENCES = 256
# In one batch of an evaluation.
EVALUATION_TOKENS = 4096


@dataclass(frozen=True)
class Size:
    """Of a decoder; `context` and `vocabulary` in tokens."""

    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int = 256

    def __str__(self) -> str:
        return f"transformer-{self.layers}x{self.width}"


SIZE = Size(layers=2, width=64, heads=2, context=64)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to the same."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm_attention(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm_mlp(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A causal decoder with learned positions: (batch, time) int64 to logits (…, vocabulary)."""

    def __init__(self, size: Size = SIZE) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the next token at each position."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def stream(part: bytes) -> Tensor:
    """Return the bytes of a part: (bytes,) uint8."""
    return torch.frombuffer(bytearray(part), dtype=torch.uint8)


def sequences(stream: Tensor, starts: Tensor, context: int) -> Batch:
    """Return inputs and targets, (len(starts), context) int64, read from each start of a stream."""
    windows = stream[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def random_sequences(
    stream: Tensor, batch: int, context: int, seed: int, start: int = 0
) -> Iterator[Batch]:
    """Yield endless batches from anywhere in a stream, as `Workload.batches`."""
    generator = torch.Generator().manual_seed(seed)
    for index in itertools.count():
        # Drawn for those left out too, in microseconds, so that the stream of batches is one.
        starts = torch.randint(len(stream) - context, (batch,), generator=generator)
        if index >= start:
            yield sequences(stream, starts, context)


def held_out(stream: Tensor, context: int) -> Batch:
    """Return EVALUATION_SEQUENCES sequences of a part, or fewer, evenly spaced, without overlap."""
    last = len(stream) - context - 1
    count = min(EVALUATION_SEQUENCES, max(1, last // context))
    return sequences(stream, torch.arange(count) * last // count, context)


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of all tokens: (batch · time, vocabulary)."""
    device = next(model.parameters()).device
    return model(batch[0].to(device)).flatten(0, 1)  # type: ignore[no-any-return]


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the nats per token of each sequence: (batch,)."""
    found = logits(model, batch)
    targets = batch[1].to(found.device)
    nats = F.cross_entropy(found, targets.flatten(), reduction="none")
    return nats.view(targets.shape).mean(1)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean nats per token."""
    found = logits(model, batch)
    return F.cross_entropy(found, batch[1].to(found.device).flatten())


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a Transformer."""
    assert isinstance(model, Transformer)
    return list(model.blocks)


def evaluate(model: nn.Module, part: Batch) -> float:
    """Return the mean nats per token over the sequences of a part."""
    rows = max(1, EVALUATION_TOKENS // part[0].shape[1])
    with evaluating(model):
        batches = list(zip(*(tokens.split(rows) for tokens in part), strict=True))
        losses = torch.stack([loss(model, batch) for batch in batches]).double().cpu()
    sizes = torch.tensor([len(inputs) for inputs, _ in batches], dtype=torch.float64)
    return float((losses * sizes).sum() / sizes.sum())


def workload(text: Corpus, name: str) -> Workload:
    """Return the byte-level workload of a text."""
    train, validation, test = map(stream, (text.train, text.validation, text.test))
    parts = {"validation": held_out(validation, SIZE.context), "test": held_out(test, SIZE.context)}
    return Workload(
        name=name,
        metric="nats per byte",
        make_model=Transformer,
        make_optimizer=lambda model, rate: torch.optim.AdamW(
            model.parameters(), lr=rate, fused=True
        ),
        learning_rate=1e-2,
        batches=lambda seed, start=0: random_sequences(train, BATCH, SIZE.context, seed, start),
        loss=loss,
        losses=losses,
        logits=logits,
        blocks=blocks,
        num_blocks=SIZE.layers,
        evaluate=lambda model: evaluate(model, parts["validation"]),
        evaluate_test=lambda model: evaluate(model, parts["test"]),
        budget_seconds=15.0,
        signature={
            "model": str(SIZE),
            "batch": BATCH,
            "context": SIZE.context,
            "evaluation_sequences": len(parts["validation"][0]),
            "dtype": "float32",
            "optimizer": "AdamW",
        },
        data=text.data,
    )


def load(data: Path) -> Workload:
    """Return the workload of a text file or folder; raises WorkloadError if it cannot be read."""
    return workload(corpus.read(data), "text")
