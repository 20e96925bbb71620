"""Byte-pair tokens of a text, by the `tokenizers` library that comes with transformers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.workloads.base import WorkloadError

# As RoBERTa's; GPT-2's is the same pieces without the first five.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# More text hardly changes the pieces, and takes minutes.
TRAINED_ON_BYTES = 50_000_000
PIECE_BYTES, PIECES_AT_ONCE = 100_000, 64


def tokenizer(train: bytes, vocabulary: int, folder: Path | None) -> Any:
    """Return the tokenizer of a folder's `tokenizer.json`, or of byte pairs learned from the text.

    Args:
        train: the training part of a text, the only one that is learned from.
        vocabulary: pieces, at most; fewer if the text has no more.
        folder: where `tokenizer.json` may be, as `transformers` writes it; may be None.

    Raises:
        WorkloadError: `tokenizers` is not installed, or the file is no tokenizer with the special
            tokens of RoBERTa.
    """
    library = _library()
    file = folder / "tokenizer.json" if folder else None
    if file and file.exists():
        try:
            found = library.Tokenizer.from_file(str(file))
        except Exception as error:  # The library raises no narrower class.
            raise WorkloadError(f"{file} is no tokenizer: {error}") from error
        if missing := [token for token in SPECIAL if found.token_to_id(token) is None]:
            raise WorkloadError(f"{file} has no token {', '.join(missing)}")
        return found
    made = library.ByteLevelBPETokenizer()
    made.train_from_iterator(
        _pieces(train[:TRAINED_ON_BYTES]),
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    return made


def encode(tokenizer: Any, text: bytes) -> Tensor:
    """Return all tokens of a text in order, without special ones: one row of int32."""
    pieces = _pieces(text)
    parts = [torch.empty(0, dtype=torch.int32)]
    # Some at a time: what the library returns takes a hundred bytes a token.
    while group := list(itertools.islice(pieces, PIECES_AT_ONCE)):
        encoded = tokenizer.encode_batch(group, add_special_tokens=False)
        parts += [torch.tensor(piece.ids, dtype=torch.int32) for piece in encoded]
    return torch.cat(parts)


def _pieces(text: bytes) -> Iterator[str]:
    """Cut the text into pieces that end with a line, so that they can be encoded in parallel."""
    at = 0
    while at < len(text):
        line_end = text.find(b"\n", at + PIECE_BYTES)
        end = len(text) if line_end < 0 else line_end + 1
        yield text[at:end].decode(errors="replace")
        at = end


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise WorkloadError(
            f"`tokenizers` is needed for this workload ({error}): pip install "
            "'lawa-opt[real-workloads]'"
        ) from error
    return tokenizers
