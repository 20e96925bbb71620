"""What a comparison tells of itself: written down at once, sent to MLflow by another process."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from matplotlib.figure import Figure
from torch import Tensor, nn

from baselines.analysis import ablation, plots, report, tables
from baselines.analysis.heat_map import heat_map
from baselines.experiment import tuning
from baselines.experiment.ablation import configs_of
from baselines.experiment.comparison import Comparison, Plan, tasks
from baselines.experiment.store import task_folder
from baselines.methods.method import Method
from baselines.tracking import saved_view
from baselines.tracking.records import FAILURE_TAG, Record, Records, Sent, count
from baselines.tracking.store_address import placed
from baselines.training.events import (
    Ended,
    Evaluated,
    Event,
    Failed,
    ModelExported,
    Started,
    fold,
)
from baselines.training.exported_model import export_model
from baselines.training.results import Point, TrainingResult
from timing import Profile
from timing.secrets import hide

# Of a tag in MLflow, where the note is kept, and some to spare for the addresses of the images.
NOTE_CHARACTERS = 7000


class Tracker:
    """A comparison in MLflow: a parent run, and in it a run for each method and seed.

    A context manager; what leaves it by an exception is marked FAILED, or KILLED by an interrupt.
    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like hold as everywhere; without them the
    store is `mlflow.db` (SQLite) in the working folder and the experiment "lawa-opt".

    No method waits for the server or fails because of it. Leaving the context waits until all is
    sent, `wait_seconds` at the most; what is not sent then stays in the folder.

    Args:
        plan: what is compared, each method with its own settings if it was tuned.
        profile: of the reference machine.
        key: of the comparison. The same key finds the same runs in MLflow, and goes on with them;
            by default they are new ones. What is told again of them changes nothing.
        folder: of what is to be sent; by default a temporary one, removed once all is sent.
        wait_seconds: for the server, at the end.
    """

    def __init__(
        self,
        plan: Plan,
        profile: Profile,
        *,
        key: str | None = None,
        folder: Path | None = None,
        wait_seconds: float = 30.0,
    ) -> None:
        self._plan, self._profile = plan, profile
        self._name = "ablation " if configs_of(plan) else ""
        self.key = key or uuid.uuid4().hex
        self._folder, self._temporary = folder, folder is None
        self._wait_seconds = wait_seconds
        self._open: dict[str, None] = {}
        self._failed = False
        # Which weights each run's latest evaluation was of.
        self._weights: dict[str, str] = {}
        self._sent = Sent()
        self._unsent = ""
        self._told: list[Event] = []

    def __enter__(self) -> Self:
        plan = self._plan
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="lawa-opt-"))
        self._records = Records(self._folder)
        Sent.forget(self._folder)
        name = f"{plan.workload.name} {plan.budget.seconds:g}s x {len(plan.seeds)} seeds"
        name = self._name + name
        reference = {f"reference/{name}_seconds": s for name, s in self._profile.seconds.items()}
        self._records.add_file(
            Record(
                comparison=self.key,
                name=os.environ.get("MLFLOW_RUN_NAME", name),
                parameters=_strings(
                    {
                        "methods": ",".join(plan.names),
                        "seeds": len(plan.seeds),
                        **self._settings(None),
                        **_tuning(plan),
                        **{f"data/{key}": value for key, value in plan.workload.data.items()},
                        **{f"workload/{k}": v for k, v in plan.workload.signature.items()},
                    }
                ),
                tags={
                    "reference": str(self._profile.machine),
                    "metric": plan.workload.metric,
                    "command": hide(shlex.join(sys.orig_argv))[:5000],
                },
                view=name,
                metrics={**reference, "reference/additivity_error": self._profile.additivity_error},
                status="RUNNING",
            ),
            {"reference-profile.json": self._profile.model_dump_json(indent=2).encode()},
        )
        with (self._folder / "sending.log").open("ab") as log:
            self._sender = subprocess.Popen(
                [
                    *(sys.executable, "-m", "baselines.tracking", str(self._folder)),
                    *("--follow", "--wait", str(self._wait_seconds)),
                ],
                # The sender lives until this pipe ends, also when this process is killed.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # An interrupt from the keyboard is for training; the sender sends what there is.
                start_new_session=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        status = "FAILED" if self._failed else "FINISHED"
        if kind is not None:
            status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        for run in self._open:
            self._records.add(Record(comparison=self.key, run=run, status=status))
        self._records.add(Record(comparison=self.key, status=status))
        removed = self._records.is_removed
        self._records.close()
        assert self._sender.stdin is not None
        self._sender.stdin.close()
        try:
            # With a little more than it has itself, to start and to end.
            self._sender.wait(self._wait_seconds + 10)
        except subprocess.TimeoutExpired:
            self._sender.kill()
            self._sender.wait()
        self._sent = Sent.read(self.folder)
        self._unsent = self._what_is_unsent(removed=removed)
        if not self._unsent and self._temporary:
            shutil.rmtree(self.folder)
        if self._unsent and kind is not None:
            # Nobody asks how to review what did not end.
            print(self._unsent)

    def _what_is_unsent(self, *, removed: bool) -> str:
        """A line on what did not reach MLflow, and how to send it; empty if all did."""
        if removed:
            return (
                f"The records for MLflow are gone: {self.folder} was removed while this ran, and "
                "with it all that had not reached MLflow by then"
            )
        if self._records.failure:
            return f"Not all could be written down for MLflow: {self._records.failure}"
        command = shlex.join([sys.executable, "-m", "baselines.tracking", str(self.folder)])
        left = count(self.folder, self._sent.offset_bytes)
        if left:
            why = self._sent.failure or "no answer"
            return (
                f"{left} record(s) did not reach MLflow ({why}) and lie in {self.folder}: "
                f"send them with {command}"
            )
        if self._sent.refused:
            return (
                f"{self._sent.refused} record(s) were refused by MLflow ({self._sent.failure}) "
                f"and lie in {self.folder}: try again with {command}"
            )
        return ""

    @property
    def folder(self) -> Path:
        """Return the folder of the records until they are sent."""
        assert self._folder is not None
        return self._folder

    @property
    def experiment_id(self) -> str:
        """MLflow's; known after the end, and empty if MLflow was not reached."""
        return self._sent.experiment_id

    @property
    def run_id(self) -> str:
        """MLflow's, of the comparison; known after the end, and empty if it was not reached."""
        return self._sent.comparisons.get(self.key, "")

    def _settings(self, method: Method | None) -> dict[str, Any]:
        """In the order in which the UI shows them: what matters first."""
        plan = self._plan
        return {
            "budget_seconds": plan.budget.seconds,
            "learning_rate": plan.rate_of(method) if method else plan.learning_rate,
            **(method.settings if method else {}),
            "workload": self._plan.workload.name,
            "policy": self._plan.policy,
        }

    def _run(self, method: str, seed: int) -> str:
        return f"{method}/{seed}/{self._plan.budget.seconds:g}s"

    def run_started(self, method: str, seed: int) -> None:
        """Open a run, named by method and seed, or go on with it if it is there."""
        run = self._run(method, seed)
        self._open[run] = None
        own = self._settings(self._plan.method(method))
        self._records.add(
            Record(
                comparison=self.key,
                run=run,
                name=f"{method}, seed {seed}",
                parameters=_strings({"method": method, "seed": seed, **own}),
                tags={"title": self._plan.titles[method]},
                status="RUNNING",
            )
        )

    def point(self, method: str, seed: int, point: Point) -> None:
        """Record an evaluation; RST is a metric too, so that it can be the x axis."""
        run = self._run(method, seed)
        self._open[run] = None
        of_weights = {}
        if point.weights:
            self._weights[run] = point.weights
            of_weights = {f"validation/{point.weights}": point.value}
        self._records.add(
            Record(
                comparison=self.key,
                run=run,
                step=point.step,
                metrics={
                    "validation/metric": point.value,
                    **of_weights,
                    "train/loss": point.train_loss,
                    "train/learning_rate": point.learning_rate,
                    saved_view.X_AXIS: point.rst_seconds,
                },
            )
        )

    def training_ended(self, result: TrainingResult) -> None:
        """Close runs with their accounts; a failed one is marked so, with the reason.

        A training that was cut off is gone on with, and has its account then: what MLflow is told
        of a step first stands.
        """
        if result.error is not None:
            for run in result.runs:
                self.run_failed(run.method, run.seed, run.failure or result.error)
            return
        for run in result.runs:
            key = self._run(run.method, run.seed)
            self._open.pop(key, None)
            metrics = {
                f"work/{line['operation']}_seconds": float(line["seconds"]) for line in run.account
            }
            metrics |= {
                **{f"work/rst_by_{name}_seconds": s for name, s in run.totals.items()},
                "work/rst_seconds": run.rst_seconds,
                "work/steps": run.steps,
                # Of the whole training, which several runs may share.
                "work/training_rst_seconds": result.rst_seconds,
                "work/training_measured_seconds": result.measured_seconds,
                "work/training_other_cores": result.other_cores,
            }
            if run.failure is None:
                metrics["final/metric"] = run.final
            if math.isfinite(run.test):
                metrics["final/test"] = run.test
            # Of step 0, the one from which the UI draws bars and not curves.
            record = Record(comparison=self.key, run=key, metrics=metrics)
            account = json.dumps({"lines": list(run.account)}, indent=2)
            self._records.add_file(record, {"account.json": account.encode()})
            if run.failure is None:
                self._records.add(Record(comparison=self.key, run=key, status="FINISHED"))
            else:
                self.run_failed(run.method, run.seed, run.failure)

    def run_failed(self, method: str, seed: int, reason: str) -> None:
        """Mark a run FAILED, with the reason as a tag and as its note."""
        run = self._run(method, seed)
        self._open.pop(run, None)
        self._records.add(
            Record(
                comparison=self.key,
                run=run,
                tags={FAILURE_TAG: reason},
                note=f"**Failed**: {reason}",
                status="FAILED",
            )
        )

    def ended(self, method: str, seed: int, model: nn.Module, inputs: Tensor) -> None:
        """Log the model of a run, for the first seed alone: stores stay small."""
        if seed == self._plan.seeds[0]:
            self.log_model(method, seed, model, inputs)

    def log_model(self, method: str, seed: int, model: nn.Module, example_input: Tensor) -> None:
        """Log a model that `mlflow.pytorch.load_model` loads, as a graph and without pickle.

        It is exported and written here, which takes seconds: keep it off the training clock. A
        model that cannot be exported is left out, and the run's tag `model` says why.

        Args:
            method: of the run that it belongs to.
            seed: of the run that it belongs to.
            model: in the weights to be logged, which are copied.
            example_input: a batch of at least two; the batch size of the logged model is free.
        """
        run = self._run(method, seed)
        # As MLflow names it, which takes no dots and colons.
        parts = self._weights.get(run, ""), re.sub(r"[^A-Za-z0-9=-]+", "-", method), str(seed)
        name = f"models/{' '.join(filter(None, parts))}"
        if self._records.is_removed:
            return
        (self.folder / name).parent.mkdir(exist_ok=True)
        if reason := export_model(model, self.folder / name, example_input):
            tags = {"model": f"not logged: {reason}"}
            self._records.add(Record(comparison=self.key, run=run, tags=tags))
        else:
            self._records.add(Record(comparison=self.key, run=run, model=name))

    def __call__(self, event: Event) -> None:
        """Record an event of the comparison."""
        self._told.append(event)
        match event:
            case Started():
                for method in event.shares:
                    self.run_started(method, event.seed)
            case Evaluated():
                self.point(event.method, event.seed, event.point)
            case ModelExported():
                self._exported(event)
            case Ended():
                told = (other for other in self._told if other.seed == event.seed)
                if result := fold(self._of(told, event)):
                    self.training_ended(result)
            case Failed():
                for method in event.methods:
                    self.run_failed(method, event.seed, event.reason)

    def _of(self, told: Iterable[Event], ended: Ended) -> Iterator[Event]:
        """Yield what was told of the runs that have ended."""
        names = {run.method for run in ended.runs}
        yield from (e for e in told if isinstance(e, Evaluated) and e.method in names)
        yield ended

    def _exported(self, event: ModelExported) -> None:
        run = self._run(event.method, event.seed)
        if event.folder is None:
            tags = {"model": f"not logged: {event.reason}"}
            self._records.add(Record(comparison=self.key, run=run, tags=tags))
            return
        clean = re.sub(r"[^A-Za-z0-9=-]+", "-", event.method)
        parts = self._weights.get(run, ""), clean, str(event.seed)
        name = f"models/{' '.join(filter(None, parts))}"
        plan, seed = self._plan, event.seed
        (task,) = (t for t in tasks(plan) if event.method in t.methods and t.seed == seed)
        source = task_folder(self.folder.parent, task) / event.folder
        if source.exists():
            shutil.copytree(source, self.folder / name, dirs_exist_ok=True)
            self._records.add(Record(comparison=self.key, run=run, model=name))

    def log_report(self, comparison: Comparison) -> None:
        """Put table, verdict and plots on the parent run."""
        shown: dict[str, Mapping[str, Sequence[Any]]] = {"results": tables.columns(comparison)}
        if comparison.plan.tried:
            shown["tuning"] = tuning.columns(comparison.plan)
        failed = comparison.failure is not None
        if configs_of(comparison.plan):
            pictures = {"k-against-interval": heat_map(comparison)}
            shown = {"results": ablation.columns(comparison)}
            self.log_note(ablation.markdown(comparison), pictures, shown, failed=failed)
            return
        text = report.markdown(comparison)
        self.log_note(text, plots.figures(comparison), shown, failed=failed)

    def log_note(
        self,
        text: str,
        figures: Mapping[str, Figure],
        tables: Mapping[str, Mapping[str, Sequence[Any]]],
        *,
        failed: bool = False,
    ) -> None:
        """Put a note on the parent run, with pictures below it, and tables beside it.

        Args:
            text: in markdown.
            figures: by name.
            tables: by name; of each the columns.
            failed: whether the parent run is marked FAILED at its end.
        """
        self._failed = failed
        text = hide(text)
        links = "\n\n".join(f"![{name}]({name}.png)" for name in figures)
        files = {f"{name}.json": _table(columns) for name, columns in tables.items()}
        self._records.add_file(
            Record(
                comparison=self.key,
                note=_shortened(text, f"\n\n{links}"),
                tables=tuple(files),
            ),
            {
                "report.md": f"{text}\n\n{links}\n".encode(),
                **files,
                **{f"{name}.png": _png(figure) for name, figure in figures.items()},
            },
        )

    def review_instructions(self) -> list[str]:
        """Return lines to print after the end: how to look at the comparison.

        The last one is the address of its saved view; or, where MLflow was never reached, the only
        one says where what is unsent lies.
        """
        unsent = [self._unsent] if self._unsent else []
        if not self.run_id:
            return unsent
        server, how = self._sent.store, unsent
        if not server.startswith("http"):
            how = [*unsent, "To review the runs, start the MLflow UI:", f"  {_ui(server)}"]
            server = "http://127.0.0.1:5000"
        page = f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return [
            *how,
            f"Table, verdict and plots: {page}?workflowType=machine_learning",
            "Curves over RST, by method:",
            saved_view.address(server, self.experiment_id, self.key),
        ]


def _ui(store: str) -> str:
    """Return what starts MLflow's UI over a store, for the shell."""
    folder, address = placed(store)
    settings = ["MLFLOW_DISABLE_TELEMETRY=true"]
    of_store = ["--backend-store-uri", address]
    if store != (os.environ.get("MLFLOW_TRACKING_URI") or store):
        # With its password, which is neither for the screen nor for the list of processes.
        settings.append('MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI"')
        of_store = []
    where = ["--host", "127.0.0.1", "--port", "5000", "--workers", "1"]
    started = shlex.join([sys.executable, "-m", "mlflow", "ui", *of_store, *where])
    command = " ".join([*settings, started])
    return command if address == store else f"(cd {shlex.quote(str(folder))} && {command})"


def _tuning(plan: Plan) -> dict[str, Any]:
    """Return what was tried for each method, and what was best; nothing without tuning."""
    if not plan.tried:
        return {}
    told: dict[str, Any] = {"tuning/trials": plan.trials}
    for name, method in zip(plan.names, plan.methods, strict=True):
        space = tuning.space_of(plan, method)
        own = {tuning.RATE: plan.rate_of(method), **method.settings}
        ranges = (f"{each} {r.low:g} to {r.high:g}" for each, r in space.items())
        told[f"tuning/{name}/rst_seconds"] = plan.tuning_rst_seconds[name]
        told[f"tuning/{name}/tried"] = ", ".join(ranges)
        told[f"tuning/{name}/best"] = ", ".join(f"{each} {own[each]}" for each in space)
    return told


def _table(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Return a table as MLflow keeps it."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"columns": list(columns), "data": rows}).encode()


def _strings(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _shortened(text: str, end: str) -> str:
    """A note within MLflow's limit of a tag, cut between two lines."""
    if len(text) + len(end) <= NOTE_CHARACTERS:
        return text + end
    more = "\n\n_The rest is in the artifact report.md._"
    kept = text[: NOTE_CHARACTERS - len(end) - len(more)].rpartition("\n")[0]
    return kept + more + end


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()
