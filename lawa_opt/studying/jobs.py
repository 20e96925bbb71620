"""Looks made in several processes, each of a stretch of the checkpoints."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from lawa_opt.averaging_files.find import CheckpointError
from lawa_opt.messages import ArgumentError
from lawa_opt.studying.looks import Ends, Looks
from lawa_opt.studying.result import Point

POLL_SECONDS = 0.1


def make_in_processes(
    jobs: int, arguments: tuple[Any, ...], ends: Ends
) -> Iterator[tuple[int, Point]]:
    """Evaluate windows in processes, and yield each point as `Looks.make` does.

    Args:
        jobs: processes.
        arguments: of `Looks`, which each makes anew; all can be pickled.
        ends: the windows to evaluate.

    Raises:
        CheckpointError: a process was killed, as where memory runs out. What one of them raises is
            passed on.
    """
    # Started anew, since a forked process could use no GPU that this one has used.
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    places = sorted(ends)
    length = -(-len(places) // jobs) or 1
    threads = max(1, torch.get_num_threads() // jobs)
    stop = context.Event()
    pool = ProcessPoolExecutor(jobs, context, _begin, (queue, stop, threads))
    try:
        parts = [places[i : i + length] for i in range(0, len(places), length)]
        pending = {pool.submit(_make, arguments, {p: ends[p] for p in part}) for part in parts}
        while pending:
            done, pending = wait(pending, POLL_SECONDS)
            while not queue.empty():
                yield queue.get()
            for future in done:
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise CheckpointError(
                        "a process of the study was killed, as where memory runs out: what was "
                        "evaluated is kept, so go on with fewer jobs"
                    ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def refuse_unpicklable(arguments: tuple[Any, ...]) -> None:
    """Refuse functions that another process cannot import, as lambdas."""
    try:
        pickle.dumps(arguments)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ArgumentError(
            f'several jobs need functions that each can import, as "FILE.py:FUNCTION": {error}'
        ) from error


# Of a process, where its points go, and whether it is to stop.
_shared: list[Any] = []


def _begin(queue: Any, stop: Any, threads: int) -> None:
    _shared[:] = queue, stop
    torch.set_num_threads(threads)
    # An interrupt is for the process that started this one, and stops it after an evaluation.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make(arguments: tuple[Any, ...], ends: Ends) -> None:
    queue, stop = _shared
    for made in Looks(*arguments).make(ends):
        queue.put(made)
        if stop.is_set():
            break
