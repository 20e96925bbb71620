"""What a comparison has to record, on disk first: a line of JSON a record.

Training only appends to a file. Another process (`tracking`) sends what is in it to MLflow, and
tells how far it came. So a server that is slow or away costs training nothing, and all stays to be
sent, or sent again.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from timing.secrets import hide

FILE = "records.jsonl"
_SENT = "sent.json"
# The run of the comparison itself, the parent of all others.
COMPARISON = "comparison"
# Tags by which the runs are found again.
COMPARISON_TAG, RUN_TAG = "lawa_opt.comparison", "lawa_opt.run"
# Why a run failed that ended by itself, and was not cut off.
FAILURE_TAG = "failure"


class Record(BaseModel):
    """Something to be recorded of one run; sending it twice is the same as once.

    Attributes:
        comparison: the key of the comparison: the same for all its records, whoever writes them.
        run: the key of the run in it, such as "lawa/0/30s", or `COMPARISON`.
        time_milliseconds: since 1970; when it is added, if it is not given.
        step: optimizer steps of the metrics.
        name: of the run, where it is made.
        parameters: of the run; the first value of each stands.
        tags: of the run; the latest value of each stands.
        view: the name of the saved view of the comparison, which is made or made again.
        metrics: at `step`; the first value of each at a step stands.
        note: in markdown, shown on the page of the run; images may be named as in `files`.
        files: artifact names, and where the content lies in the folder of the records.
        tables: those of the files that are tables: JSON with "columns" and "data".
        model: the folder of a saved model, in the folder of the records.
        status: of the run from here on: RUNNING, FINISHED, FAILED or KILLED.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    comparison: str
    run: str = COMPARISON
    time_milliseconds: int = 0
    step: int = 0
    name: str | None = None
    parameters: dict[str, str] = {}
    tags: dict[str, str] = {}
    view: str | None = None
    metrics: dict[str, float] = {}
    note: str | None = None
    files: dict[str, str] = {}
    tables: tuple[str, ...] = ()
    model: str | None = None
    status: str | None = None

    @property
    def is_metrics_alone(self) -> bool:
        """Say whether it has nothing but metrics."""
        where = {"comparison", "run", "time_milliseconds", "step"}
        return self.model_fields_set <= {*where, "metrics"}


class Records:
    """Appends records to the file of a folder, which several processes may do at a time.

    Appending never raises for a disk that is full or away: a record that could not be written is
    written with the next one. No secret of the environment is written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._failure: str | None = None
        # A file that could not be written is not tried again.
        self._lost_file: str | None = None
        path = folder / FILE
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        # A line that a killed process left unfinished is ended, so that it spoils no other.
        size = os.fstat(self._file).st_size
        self._unwritten = b"\n" if size and os.pread(self._file, 1, size - 1) != b"\n" else b""

    @property
    def failure(self) -> str | None:
        """Why not all is written, in a line; None if it is."""
        return self._failure or self._lost_file

    @property
    def is_removed(self) -> bool:
        """Say whether the file was removed, so that nobody reads what is appended."""
        try:
            return not os.path.samestat((self.folder / FILE).stat(), os.fstat(self._file))
        except FileNotFoundError:
            return True

    def add(self, record: Record) -> None:
        """Append a record."""
        record = record.model_copy(
            update={
                "time_milliseconds": record.time_milliseconds or time.time_ns() // 1_000_000,
                "parameters": {name: hide(text) for name, text in record.parameters.items()},
                "tags": {name: hide(text) for name, text in record.tags.items()},
                "note": record.note and hide(record.note),
            }
        )
        self._unwritten += record.model_dump_json(exclude_defaults=True).encode() + b"\n"
        self.write()

    def add_file(self, record: Record, content: dict[str, bytes]) -> None:
        """Append a record with files, given by artifact name."""
        files = {}
        for name, data in content.items():
            files[name] = f"files/{record.run.replace('/', '-')}-{name}"
            path = self.folder / files[name]
            try:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            except OSError as error:
                self._lost_file = f"{path}: {error.strerror}"
                # A part of it is no file to be sent.
                with suppress(OSError):
                    path.unlink()
        self.add(record.model_copy(update={"files": files}))

    def write(self) -> None:
        """Write what is still unwritten, if the disk takes it."""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
            self._failure = None
        except OSError as error:
            self._failure = f"{self.folder}: {error.strerror}"

    def close(self) -> None:
        """Write what is left and close the file."""
        self.write()
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Sent(BaseModel):
    """How far a sender has come, as it writes it beside the records for the one that started it.

    No other sender goes on from there: each looks for everything in the store that it sends to.

    Attributes:
        offset_bytes: of the first record that is not sent.
        store: the address that they are sent to, without its secrets.
        experiment_id: of the experiment there, once the store answered.
        comparisons: by key, the ids of their runs.
        refused: how many records were refused.
        failure: why sending does not succeed, in a line; or the latest refusal.
    """

    model_config = ConfigDict(extra="forbid")

    offset_bytes: int = 0
    store: str = ""
    experiment_id: str = ""
    comparisons: dict[str, str] = {}
    refused: int = 0
    failure: str = ""

    @classmethod
    def read(cls, folder: Path) -> Sent:
        """Return what is in the folder; nothing sent where nothing can be read."""
        try:
            return cls.model_validate_json((folder / _SENT).read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove what an earlier sender has written."""
        (folder / _SENT).unlink(missing_ok=True)

    def write(self, folder: Path) -> None:
        """Replace what is in the folder, unless it is gone."""
        temporary = folder / f"{_SENT}.partial"
        with suppress(FileNotFoundError):
            temporary.write_text(self.model_dump_json(indent=2))
            temporary.replace(folder / _SENT)


def count(folder: Path, offset_bytes: int) -> int:
    """Count the records from an offset in the file on."""
    return len(read(folder, offset_bytes)[0])


def read(folder: Path, offset_bytes: int, most: int = sys.maxsize) -> tuple[list[Record], int]:
    """The records from an offset in the file on, and the offset behind them.

    A line cut short by a kill is passed over; one that is still being written is left for later.
    """
    found: list[Record] = []
    try:
        with (folder / FILE).open("rb") as file:
            file.seek(offset_bytes)
            for line in file:
                if not line.endswith(b"\n") or len(found) == most:
                    break
                offset_bytes += len(line)
                try:
                    found.append(Record.model_validate_json(line))
                except ValidationError:
                    continue
    except FileNotFoundError:
        pass
    return found, offset_bytes
