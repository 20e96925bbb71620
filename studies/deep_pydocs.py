"""A deeper, narrower transformer on the text of `pydocs`, for recipes of blocks and of examples.

It has four blocks, so that leaving out and stacking of some is felt. Sequences do not overlap, so
that each is an example with an id.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from baselines.workloads import pydocs, text
from baselines.workloads.base import Batch, Examples, Workload

SIZE = replace(text.SIZE, layers=4, width=32)


def load() -> Workload:
    """Return the workload."""
    corpus = pydocs.read()
    train = text.stream(corpus.train)
    count = (len(train) - 1) // SIZE.context

    def get(ids: Tensor) -> Batch:
        return *text.sequences(train, ids * SIZE.context, SIZE.context), ids

    def batches(seed: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for index in itertools.count():
            ids = torch.randint(count, (text.BATCH,), generator=generator)
            if index >= start:
                yield get(ids)

    shallow = text.workload(corpus, "deep-pydocs")
    return replace(
        shallow,
        make_model=partial(text.Transformer, SIZE),
        batches=batches,
        examples=Examples(count, get),
        num_blocks=SIZE.layers,
        signature={**shallow.signature, "model": str(SIZE)},
    )
