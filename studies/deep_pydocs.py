"""The transformer of `pydocs`, of four blocks, so that leaving out and stacking of some is felt."""

from dataclasses import replace
from functools import partial

from baselines.workloads import pydocs, text
from baselines.workloads.base import Workload

SIZE = replace(text.SIZE, layers=4)


def load() -> Workload:
    """The workload."""
    shallow = pydocs.load()
    return replace(
        shallow,
        name="deep-pydocs",
        make_model=partial(text.Transformer, SIZE),
        num_blocks=SIZE.layers,
        signature={**shallow.signature, "model": str(SIZE)},
    )
