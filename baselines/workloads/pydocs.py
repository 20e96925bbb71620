"""Byte-level language modelling on CPython's own language reference."""

import platform
from pydoc_data.topics import topics

from baselines.workloads import text
from baselines.workloads.base import Workload
from baselines.workloads.data.corpus import Corpus


def read() -> Corpus:
    """Return the text of `pydoc_data.topics`, some 460 kB that every Python brings along."""
    reference = "\n".join(topics[name] for name in sorted(topics))
    source = f"pydoc_data.topics of Python {platform.python_version()}"
    return Corpus.split(reference.encode(), source)


def load() -> Workload:
    """Return the workload of that text."""
    return text.workload(read(), "pydocs")
