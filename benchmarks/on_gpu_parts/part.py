"""What all parts of `on_gpu.py` share: their options, and a file that is whole at any moment."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rows import parser

from timing import this_machine, this_software


class Part:
    """A part at work: what it has found so far is in its file.

    Attributes:
        smoke: whether it is only tried, on a CPU and with tiny sizes.
        device: "cuda", or "cpu" if it is only tried.
        work: a folder for what is not kept.
        folder: where the files of all parts are.
    """

    def __init__(self, doc):
        arguments = parser(doc)
        arguments.add_argument("--seconds", type=float, default=600.0, help="its limit")
        arguments.add_argument("--work", type=Path, default=Path("on-gpu"), metavar="DIR")
        options = arguments.parse_args()
        # Of all that it has, importing has taken seconds already.
        self._end = psutil.Process().create_time() + options.seconds
        self._file = options.json
        self.smoke = options.quick
        self.device = "cpu" if self.smoke else "cuda"
        self.work = options.work
        self.folder = self._file.parent if self._file else self.work
        self._found: dict[str, Any] = {"rows": [], "notes": [], "data": {}}
        self._found["commit"] = os.environ.get("LAWA_OPT_COMMIT", "")
        self._found["machine"] = str(this_machine())
        self._found["software"] = this_software().model_dump()

    @property
    def seconds_left(self):
        return self._end - time.time()

    def add(self, *rows, **data):
        """Add rows of the table, and whatever else is worth keeping, by name."""
        self._found["rows"] += map(asdict, rows)
        self._found["data"] |= data
        self._write()

    def note(self, text):
        """Add a line below the table."""
        self._found["notes"].append(text)
        print(text, flush=True)
        self._write()

    def _write(self):
        if self._file:
            temporary = self._file.with_name(f"{self._file.name}.partial")
            temporary.write_text(json.dumps(self._found, indent=1, allow_nan=True))
            temporary.replace(self._file)

    def data_of(self, part, name):
        """What another part has kept under this name; None if it has not."""
        file = self.folder / f"{part}.json"
        return json.loads(file.read_text())["data"].get(name) if file.exists() else None
