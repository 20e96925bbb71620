"""GPT-2's decoder in several sizes, on the byte-pair tokens of any text."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import nn

from baselines.workloads import text
from baselines.workloads.base import Workload, WorkloadError, default_device
from baselines.workloads.data import corpus, tokens
from baselines.workloads.data.corpus import Corpus
from baselines.workloads.text import Size

BATCH = 16
# Small and medium as in GPT-2; mini trains on a CPU.
SIZES = {
    "mini": Size(layers=4, width=256, heads=4, context=128, vocabulary=4096),
    "small": Size(layers=12, width=768, heads=12, context=1024, vocabulary=50257),
    "medium": Size(layers=24, width=1024, heads=16, context=1024, vocabulary=50257),
}


def make_model(size: Size) -> nn.Module:
    """Make the decoder with GPT-2's initial weights, input and output embeddings tied."""
    model = text.Transformer(size)
    model.head = nn.Linear(size.width, size.vocabulary, bias=False)
    model.head.weight = model.tokens.weight
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            into_residual = name.endswith(("out.weight", "mlp.2.weight"))
            scale = math.sqrt(2 * size.layers) if into_residual else 1.0
            nn.init.normal_(parameter, std=0.02 / scale)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Make GPT-3's AdamW: matrices and embeddings decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def workload(text_parts: Corpus, size: Size, name: str, folder: Path | None = None) -> Workload:
    """Return the workload of a text at a size of your own; `folder` may hold a `tokenizer.json`."""
    pieces = tokens.tokenizer(text_parts.train, size.vocabulary, folder)
    size = dataclasses.replace(size, vocabulary=pieces.get_vocab_size())
    train, validation, test = (
        tokens.encode(pieces, part)
        for part in (text_parts.train, text_parts.validation, text_parts.test)
    )
    shortest = min(map(len, (train, validation, test)))
    if shortest < 2 * size.context:
        raise WorkloadError(
            f"{text_parts.data['source']}: its shortest part has {shortest} tokens; a context of "
            f"{size.context} needs {2 * size.context}: give more text or a smaller size"
        )
    parts = {"validation": text.held_out(validation, size.context)}
    parts["test"] = text.held_out(test, size.context)
    return Workload(
        name=name,
        metric="nats per token",
        make_model=lambda: make_model(size).to(default_device()),
        make_optimizer=make_optimizer,
        learning_rate=6e-4,
        batches=lambda seed, start=0: text.random_sequences(
            train, BATCH, size.context, seed, start
        ),
        loss=text.loss,
        losses=text.losses,
        logits=text.logits,
        blocks=text.blocks,
        num_blocks=size.layers,
        evaluate=lambda model: text.evaluate(model, parts["validation"]),
        evaluate_test=lambda model: text.evaluate(model, parts["test"]),
        budget_seconds=3600.0,
        signature={
            "model": f"gpt-{size.layers}x{size.width}",
            "heads": size.heads,
            "vocabulary": size.vocabulary,
            "batch": BATCH,
            "context": size.context,
            "evaluation_sequences": len(parts["validation"][0]),
            "dtype": "float32",
            "device": default_device().type,
            "optimizer": "AdamW",
        },
        data={**text_parts.data, "tokens": len(train) + len(validation) + len(test)},
    )


def load(data: Path, size: str = "small") -> Workload:
    """Return the workload of a text file or folder; raises WorkloadError if it cannot be read."""
    return workload(corpus.read(data), SIZES[size], f"gpt-{size}", data if data.is_dir() else None)
