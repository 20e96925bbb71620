"""Byte-level language modelling on any text: a small causal transformer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.workloads.workload import Batch, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 64, 2, 2, 64, 8
CHUNK_BYTES = 1024
EVALUATION_SEQUENCES = 256


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm_mlp = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, WIDTH) to the same."""
        batch, time, _ = x.shape
        q, k, v = (
            part.view(batch, time, HEADS, -1).transpose(1, 2)
            for part in self.qkv(self.norm_attention(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time, WIDTH))
        return x + self.mlp(self.norm_mlp(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A decoder over bytes with learned positions: (batch, time) int64 to logits (…, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next byte at each position."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.bytes(tokens) + self.positions(positions)
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def split(text: bytes) -> dict[str, Tensor]:
    """Divide a text by chunks into "train", "validation" and "test", 8 : 1 : 1, as uint8 tensors.

    The tenth chunk of every ten is for testing and the one before it for validation, so both parts
    come from everywhere in the text and no byte is in two parts.
    """
    chunks = [text[at : at + CHUNK_BYTES] for at in range(0, len(text), CHUNK_BYTES)]
    parts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for index, chunk in enumerate(chunks):
        parts[{8: "validation", 9: "test"}.get(index % 10, "train")].append(chunk)
    return {
        name: torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8)
        for name, part in parts.items()
    }


def _sequences(text: Tensor, starts: Tensor) -> Batch:
    """Inputs and targets, (len(starts), CONTEXT) int64, read from each start."""
    windows = text[starts[:, None] + torch.arange(CONTEXT + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def workload(text: bytes, name: str, source: str) -> Workload:
    """The workload of a text.

    Args:
        text: raw bytes, whatever their encoding.
        name: as given to `--workload`.
        source: where the text comes from, for the record.

    Raises:
        ValueError: the text is too short to be divided into training, validation and test parts.
    """
    shortest = 20 * CHUNK_BYTES
    if len(text) < shortest:
        raise ValueError(f"{source} has {len(text)} bytes; at least {shortest} are needed")
    parts = split(text)
    train, validation = parts["train"], parts["validation"]
    last = len(validation) - CONTEXT - 1
    count = min(EVALUATION_SEQUENCES, last // CONTEXT)
    held_out = _sequences(validation, torch.arange(count) * last // count)

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            last_start = len(train) - CONTEXT
            yield _sequences(train, torch.randint(last_start, (BATCH,), generator=generator))

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        model.eval()
        losses = [_loss(model, part) for part in zip(*(t.split(64) for t in held_out), strict=True)]
        sizes = torch.tensor([len(part) for part in held_out[0].split(64)], dtype=torch.float64)
        model.train()
        return float((torch.stack(losses).double() * sizes).sum() / sizes.sum())

    return Workload(
        name=name,
        metric="nats per byte",
        make_model=Transformer,
        make_optimizer=lambda model, rate: torch.optim.AdamW(
            model.parameters(), lr=rate, fused=True
        ),
        learning_rate=1e-2,
        batches=batches,
        loss=_loss,
        evaluate=evaluate,
        statistics_batches=(),
        budget_seconds=30.0,
        signature={
            "model": f"transformer-{LAYERS}x{WIDTH}",
            "batch": BATCH,
            "context": CONTEXT,
            "evaluation_sequences": count,
            "dtype": "float32",
            "optimizer": "AdamW",
        },
        data={"source": source, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()},
    )


def load(path: Path) -> Workload:
    """The workload of a text file; raises OSError if it cannot be read, ValueError if too short."""
    return workload(path.read_bytes(), "text", path.name)
