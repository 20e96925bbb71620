"""A workload for a GPU: a byte-level transformer on the source of Python's standard library.

The text is there wherever Python is; it differs with its version, as its digest says.
"""

import platform
import sysconfig
from pathlib import Path

import torch

from baselines.workloads import Workload, text
from baselines.workloads.base import default_device
from baselines.workloads.data.corpus import Corpus

MOST_BYTES = 16_000_000
# 29 million parameters.
SIZE = text.Size(layers=9, width=512, heads=8, context=256)
BATCH = 16


def standard_library(most_bytes):
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = bytearray()
    for path in sorted(folder.rglob("*.py")):
        # Not what is installed into it, nor links of a distribution that lead nowhere.
        if path.is_file() and not any(part.endswith("-packages") for part in path.parts):
            found += path.read_bytes()
        if len(found) >= most_bytes:
            break
    source = f"the standard library of Python {platform.python_version()}"
    return Corpus.split(bytes(found[:most_bytes]), source)


def workload(name, size, batch, most_bytes):
    corpus = standard_library(most_bytes)
    train, validation, test = (
        torch.frombuffer(bytearray(part), dtype=torch.uint8)
        for part in (corpus.train, corpus.validation, corpus.test)
    )
    held_out = [text.held_out(part, size.context) for part in (validation, test)]
    return Workload(
        name=name,
        metric="nats per byte",
        make_model=lambda: text.Transformer(size).to(default_device()),
        make_optimizer=lambda model, rate: torch.optim.AdamW(
            model.parameters(), lr=rate, fused=True
        ),
        learning_rate=3e-4,
        batches=lambda seed, start=0: text.random_sequences(
            train, batch, size.context, seed, start
        ),
        loss=text.loss,
        evaluate=lambda model: text.evaluate(model, held_out[0]),
        evaluate_test=lambda model: text.evaluate(model, held_out[1]),
        budget_seconds=60.0,
        signature={
            "model": str(size),
            "heads": size.heads,
            "batch": batch,
            "context": size.context,
            "evaluation_sequences": len(held_out[0][0]),
            "dtype": "float32",
            "device": default_device().type,
            "optimizer": "AdamW",
        },
        data=corpus.data,
    )


def load():
    """The workload of the run."""
    return workload("transformer-29m", SIZE, BATCH, MOST_BYTES)
