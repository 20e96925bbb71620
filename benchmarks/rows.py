"""A row of results: made of the samples of rounds, printed as a table, and handed on as JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from timing.calibration.cpu_probe import cpu_probe_seconds, drop_disturbed

# What is shorter is repeated within a round, to be well above the clocks' grain.
SHORTEST_SECONDS = 0.02


@dataclass(frozen=True)
class Limit:
    """A target: of the ratio to the floor or to a peer, if named, else of the median itself."""

    bound: float
    of: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g}" + f" x {self.of}" * bool(self.of)

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Row:
    """One kind of work at one size.

    Attributes:
        work: what was done.
        size: on what.
        n: samples.
        median: of the samples, in `unit`.
        spread: their interquartile range, in `unit`; None for a single or a fitted value.
        unit: of both.
        peers: how many times as much as each peer's, the median over pairs of the same round.
        floor: the same for the physical floor; None where there is none.
        target: what was to be reached, in words; empty if nothing was.
        reached: the value that the target is of.
        met: whether it is met; None without a target.
    """

    work: str
    size: str
    n: int
    median: float
    spread: float | None
    unit: str
    peers: dict[str, float] = field(default_factory=dict)
    floor: float | None = None
    target: str = ""
    reached: float | None = None
    met: bool | None = None

    @classmethod
    def of(
        cls,
        work: str,
        size: str,
        unit: str,
        samples: Sequence[float],
        peers: Mapping[str, Sequence[float]] | None = None,
        floor: Sequence[float] | None = None,
        limit: Limit | None = None,
    ) -> Row:
        """The row of samples in `unit`; those of peers and floor are of the same rounds."""
        ratios = {name: ratio(samples, theirs) for name, theirs in (peers or {}).items()}
        over_floor = None if floor is None else ratio(samples, floor)
        median = statistics.median(samples)
        named = {**ratios, "": median, "the floor": over_floor}
        row = cls(work, size, len(samples), median, spread(samples), unit, ratios, over_floor)
        return row if limit is None else row.held_to(limit, named[limit.of])

    def held_to(self, limit: Limit, reached: float) -> Row:
        """The same row with a target, and whether it is met."""
        target = str(limit) + f" {self.unit}" * (not limit.of)
        return replace(self, target=target.strip(), reached=reached, met=limit.met(reached))

    def at(self, size: str) -> Row:
        """The same row under another name of its size."""
        return replace(self, size=size)

    def cells(self) -> list[str]:
        """Its values as text, in the order of `columns`."""
        return [
            self.work,
            self.size,
            str(self.n),
            f"{number(self.median)} {self.unit}".strip(),
            "·" if self.spread is None else number(self.spread),
            *(number(ratio) for ratio in self.peers.values()),
            "·" if self.floor is None else number(self.floor),
            self.target,
            {None: "", True: "met", False: "MISSED"}[self.met],
        ]


def columns(row: Row) -> list[str]:
    """The heads of the table that a row is in; rows with the same peers are in one."""
    peers = [f"x {name}" for name in row.peers]
    return ["work", "size", "n", "median", "IQR", *peers, "x floor", "target", ""]


def number(value: float) -> str:
    """A value with three digits that count, or all of a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over pairs of the same round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def spread(samples: Sequence[float]) -> float | None:
    """The interquartile range; None for a single sample."""
    if len(samples) < 2:
        return None
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high - low


def cpu_seconds(call: Callable[[], object]) -> float:
    """Processor time of this process during a call; robust against what else runs."""
    start = time.process_time_ns()
    call()
    return (time.process_time_ns() - start) / 1e9


def cuda_seconds(call: Callable[[], object]) -> float:
    """Time on the GPU between events of the current stream before and after a call."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


# How many times as many rounds as asked for are run, to find the processor undisturbed.
MAX_EFFORT = 3
# Of all rounds behind the rows, and those among them on a processor that a neighbour slowed down.
ROUNDS = {"all": 0, "disturbed": 0}


def undisturbed_rounds(
    samplers: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Samples of each, everyone in turn in each round, while no neighbour slows the processor down.

    Other rounds are run for those that were disturbed. Neighbours may stay for an hour, so there is
    an end to that, and what is still missing then is taken from the latest as they were.
    """
    taken: list[dict[str, float]] = []
    probed: list[tuple[float, int]] = []
    undisturbed: list[int] = []
    while len(undisturbed) < rounds and len(taken) < MAX_EFFORT * rounds:
        probes, sampled = [cpu_probe_seconds()], {}
        for name, sample in samplers.items():
            sampled[name] = sample()
            probes.append(cpu_probe_seconds())
        probed.append((max(probes), len(taken)))
        taken.append(sampled)
        # Of one round alone nothing shows.
        undisturbed = drop_disturbed(probed) if len(probed) > 1 else [0]
    disturbed = [number for number in range(len(taken)) if number not in undisturbed]
    missing = max(0, rounds - len(undisturbed))
    ROUNDS["all"] += rounds
    ROUNDS["disturbed"] += missing
    kept = undisturbed[:rounds] + disturbed[len(disturbed) - missing :]
    return {name: [taken[number][name] for number in kept] for name in samplers}


def seconds_of(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: Callable[[Callable[[], object]], float] = cpu_seconds,
) -> dict[str, list[float]]:
    """Seconds of one run of each call, round by round, everyone in turn in each round.

    A call runs once before its clock starts, or it would pay for writing to memory what the one
    before left in the cache.
    """
    samplers: dict[str, Callable[[], float]] = {}
    for name, call in calls.items():
        call()
        repeats = max(1, round(SHORTEST_SECONDS / max(1e-6, seconds(call))))

        def sample(call: Callable[[], object] = call, repeats: int = repeats) -> float:
            def repeat() -> None:
                for _ in range(repeats):
                    call()

            call()
            return seconds(repeat) / repeats

        samplers[name] = sample
    if seconds is cpu_seconds:
        return undisturbed_rounds(samplers, rounds)
    taken = [{name: sample() for name, sample in samplers.items()} for _ in range(rounds)]
    return {name: [sampled[name] for sampled in taken] for name in samplers}


def scaled(samples: Iterable[float], factor: float) -> list[float]:
    """The samples in another unit."""
    return [sample * factor for sample in samples]


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="to try it; the figures say nothing")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return made


def tables(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows, parted wherever the columns change."""
    parted: list[list[Row]] = []
    for row in rows:
        if not parted or columns(parted[-1][0]) != columns(row):
            parted.append([])
        parted[-1].append(row)
    return parted


def none(work, size, count):
    """A row of a count that must be 0."""
    return Row.of(work, size, "", [count]).held_to(Limit(0), count)


def finish(rows: Sequence[Row], notes: Sequence[str], arguments: argparse.Namespace) -> None:
    """Print the rows, write them where they were asked for, and exit with 1 if one is missed."""
    if ROUNDS["all"]:
        share = ROUNDS["disturbed"] / ROUNDS["all"]
        notes = [*notes, f"{share:.0%} of the rounds are of a processor disturbed by neighbours."]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for part in tables(rows):
        table = Table()
        for column in columns(part[0]):
            table.add_column(column, justify="left" if column in ("work", "size") else "right")
        for row in part:
            table.add_row(*row.cells())
        console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    if arguments.json is not None:
        written: dict[str, Any] = {"rows": [asdict(row) for row in rows], "notes": list(notes)}
        arguments.json.write_text(json.dumps(written, indent=1))
    targets = [row.met for row in rows if row.met is not None]
    if not all(targets):
        sys.exit(f"{targets.count(False)} of {len(targets)} targets MISSED, see above")
