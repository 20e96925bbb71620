"""The operations that this project charges: one row each, with what a policy looks at.

A method of yours may run others. They need no row here: what has none is charged by every policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Purpose = Literal["training", "reported model", "beside training"]
"""The purpose of an operation.

"training" changes weights, averages or statistics in the training loop; "reported model" makes the
model that is reported out of what training holds; "beside training" looks at training or feeds it.
"""

OPERATIONS: Mapping[str, Purpose] = {
    "load_data": "beside training",
    "train_step": "training",
    "schedule_free_step": "training",
    "lion_step": "training",
    "sophia_step": "training",
    "hessian": "training",
    "score": "training",
    "score_by_id": "training",
    "irreducible_step": "training",
    "irreducible_score": "training",
    "collect": "training",
    "ema_update": "training",
    "swa_update": "training",
    "average": "reported model",
    "swap": "reported model",
    "statistics": "reported model",
    "evaluate": "beside training",
}


def operations_for(*purposes: Purpose) -> frozenset[str]:
    """Return the operations with one of these purposes."""
    return frozenset(name for name, purpose in OPERATIONS.items() if purpose in purposes)
