"""What several tests share."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """WikiText-2's validation part as plain text."""
    path = Path(os.environ.get("LAWA_OPT_DATA", SHARED_DATA)) / "wikitext-2" / "valid.txt"
    if not path.exists():
        pytest.skip(f"no {path}: set LAWA_OPT_DATA to the folder with wikitext-2/valid.txt")
    return path
