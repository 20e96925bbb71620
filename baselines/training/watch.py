"""Watch a training: clocks, phases, the GPUs that it uses, and the joules of the processors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import torch

from baselines.training import distributed
from baselines.training.measurement import Measurement, Timed, kind_of
from timing import GpuMeter, GpuUse, StepTimer, Stopwatch
from timing.clocks.host_energy import HostEnergy

_T = TypeVar("_T")

LOAD_DATA, EVALUATE = "load_data", "evaluate"


class Watch:
    """Watches a training in this process; its clocks stand still in `paused()`.

    A meter that fails ends no training: it is named in what is not measured.

    Args:
        device: that the model is on.

    Attributes:
        steps: times steps, by the operations that ran in them, and the loading of data.
        readings: times what is read of averages, and evaluations.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = StepTimer()
        # They are too few to leave some out.
        self.readings = StepTimer(warm_up=0)
        self._device = device
        self._stopwatch = Stopwatch(but_children=True)
        self._energy = HostEnergy()
        self._meter: GpuMeter | None = None
        self._uses: tuple[GpuUse, ...] = ()
        self._operations: dict[str, dict[str, int]] = {
            LOAD_DATA: {LOAD_DATA: 1},
            EVALUATE: {EVALUATE: 1},
        }
        self._unavailable: list[str] = []
        # Of the processes before this one, where the training was cut off and went on.
        self._processes = 1
        self._before = dict.fromkeys(("wall_seconds", "cpu_seconds", "other_core_seconds"), 0.0)

    def __enter__(self) -> Self:
        # One for all ranks of a node, or what it burns would be counted for each.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            self._attempt(self._energy.start)
        used = self._attempt(lambda: _devices_of_this_node(self._device)) or ()
        if used:
            self._meter = self._attempt(lambda: GpuMeter(uuids=used).start())
        elif self._device.type == "cpu":
            self._unavailable.append("no GPU: the model is on the CPU")
        self._stopwatch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopwatch.stop()
        self._attempt(self._energy.stop)
        if self._meter:
            self._attempt(self._meter.stop)
            self._uses = self._meter.uses

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clocks for a block, once what was launched is done."""
        if torch.cuda.is_initialized():
            # Steps that were launched and have not run yet are none of what the watch pauses for.
            torch.cuda.synchronize()
        self._stopwatch.stop()
        try:
            yield
        finally:
            self._stopwatch.start()

    @contextmanager
    def reading(self, operations: Mapping[str, int]) -> Iterator[None]:
        """Time a block in which these operations put an average into the model and take it out."""
        self.readings.start("reading")
        yield
        if operations:
            kind = kind_of(Counter(operations).elements())
            self.name(kind, operations)
            self.readings.stop(kind)
        else:
            self.readings.drop()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Stop the clocks for a block within a reading, which is none of it."""
        with self.readings("beside"), self.paused():
            yield

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Time an evaluation, which runs while the clocks stand still."""
        with self.readings(EVALUATE):
            yield

    def name(self, kind: str, operations: Mapping[str, int]) -> None:
        """Keep what ran in the passes of this name."""
        self._operations[kind] = {name: times for name, times in operations.items() if times}

    def _attempt(self, call: Callable[[], _T]) -> _T | None:
        try:
            return call()
        # Whatever a driver does, the training goes on.
        except Exception as error:
            self._unavailable.append(f"not measured: {type(error).__name__}: {error}"[:200])
            return None

    @property
    def _seconds(self) -> dict[str, float]:
        watch = self._stopwatch
        here = {
            "wall_seconds": watch.wall_seconds,
            "cpu_seconds": watch.cpu_seconds,
            "other_core_seconds": watch.other_cores * watch.wall_seconds,
        }
        return {name: seconds + self._before[name] for name, seconds in here.items()}

    @property
    def wall_seconds(self) -> float:
        """Wall time of all but the pauses, in this process and those before it."""
        return self._seconds["wall_seconds"]

    @property
    def other_cores(self) -> float:
        """Mean number of cores that other processes kept busy meanwhile."""
        seconds = self._seconds
        wall = seconds["wall_seconds"]
        return seconds["other_core_seconds"] / wall if wall else 0.0

    def measurement(self, operations: Mapping[str, int]) -> Measurement:
        """Return what was measured; every rank must call, and the first has it of all nodes.

        Args:
            operations: how often each ran in the measured seconds.
        """
        phases = {
            kind: Timed(self._operations[kind], phase)
            for kind, phase in (*self.steps.phases().items(), *self.readings.phases().items())
            if kind in self._operations and phase.count
        }
        unavailable = list(self._unavailable)
        if self._meter and self._meter.unavailable:
            unavailable.append(self._meter.unavailable)
        if self._energy.unavailable:
            unavailable.append(self._energy.unavailable)
        of_nodes = distributed.gathered((self._uses, self._energy.joules))
        uses = {use.uuid: use for each, _ in of_nodes for use in each}
        unavailable += [
            f"{use.name} ({use.uuid}): {why}" for use in uses.values() for why in use.unavailable
        ]
        told = [joules for _, joules in of_nodes if joules is not None]
        joules = sum(told) if told else None
        if self._processes > 1:
            joules = None
            unavailable.append(
                f"joules and GPUs of the whole training: it went on in {self._processes} "
                "processes one after another, and those before the latest are not known"
            )
        return Measurement(
            operations=dict(operations),
            cpu_seconds=self._seconds["cpu_seconds"],
            ranks=distributed.world_size(),
            processes=self._processes,
            phases=phases,
            gpus=tuple(uses.values()),
            host_joules=joules,
            unavailable=tuple(dict.fromkeys(unavailable)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far, of this process and those before it."""
        return {**self._seconds, "processes": self._processes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, in another process."""
        self._before = {name: float(state[name]) for name in self._before}
        self._processes = int(state["processes"]) + 1


def _devices_of_this_node(device: torch.device) -> tuple[str, ...]:
    """Return the UUIDs of the GPUs that this rank is to meter: on each node one does it for all."""
    own = _uuids_of(device)
    node = os.environ.get("GROUP_RANK", "0")
    together = distributed.gathered((node, own))
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return ()
    found = (uuid for other, uuids in together if other == node for uuid in uuids)
    return tuple(dict.fromkeys(found))


def _uuids_of(device: torch.device) -> tuple[str, ...]:
    """Return how NVML may call a device; of a MIG instance it has another beginning."""
    if device.type != "cuda":
        return ()
    uuid = torch.cuda.get_device_properties(device).uuid
    return f"GPU-{uuid}", f"MIG-{uuid}"
