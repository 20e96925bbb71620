"""Say of a comparison what MLflow is to have: names, parameters, metrics and the report."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from baselines.analysis import ablation, html_report, plots, report, tables
from baselines.analysis.figures import figures_of
from baselines.experiment import tuning
from baselines.experiment.ablation import configs_of
from baselines.experiment.comparison import Comparison
from baselines.experiment.kept import Kept
from baselines.experiment.plan import RATE, Plan
from baselines.methods.method import Method
from baselines.tracking import said_of_readings
from baselines.tracking.said_of_readings import section_of
from baselines.tracking.saved_view import X_AXIS
from baselines.training.results import Point, Run, TrainingResult
from baselines.training.rounding import FLOAT
from timing import Profile
from timing.rst.account import charged_counts, reference_joules
from timing.secrets import hide

# The page that a comparison is opened on.
REPORT = "report.html"
# Of a tag in MLflow, where the note is kept, and some to spare for the addresses of the images.
NOTE_CHARACTERS = 7000


def name_of(plan: Plan) -> str:
    """Return the name of a comparison."""
    what = "ablation " if configs_of(plan) else ""
    seeds = f"{len(plan.seeds)} seeds{plan.but_free}"
    return f"{what}{plan.workload.name} {plan.budget.seconds:g}s x {seeds}"


def parameters_of(plan: Plan) -> dict[str, str]:
    """Return the parameters of a comparison, in the order in which the UI shows them."""
    return _strings(
        {
            "methods": ",".join(plan.names),
            "seeds": len(plan.seeds),
            **_settings(plan, None),
            "metric": f"{plan.workload.metric}, {plan.workload.better} is better",
            **_tuning(plan),
            **{f"data/{key}": value for key, value in plan.workload.data.items()},
            **{f"workload/{key}": value for key, value in plan.workload.signature.items()},
        }
    )


def parameters_of_run(plan: Plan, method: str, seed: int) -> dict[str, str]:
    """Return the parameters of a run: what matters first."""
    return _strings({"method": method, "seed": seed, **_settings(plan, plan.method(method))})


def _settings(plan: Plan, method: Method | None) -> dict[str, Any]:
    return {
        "budget_seconds": plan.budget.seconds,
        "learning_rate": plan.rate_of(method) if method else plan.learning_rate,
        **(method.settings if method else {}),
        "workload": plan.workload.name,
        "policy": plan.policy,
        **({"free": ", ".join(plan.free)} if plan.free else {}),
        **({"read": ", ".join(plan.read)} if plan.roundings else {}),
    }


def _tuning(plan: Plan) -> dict[str, Any]:
    """Return what was tried for each method, and what was best; nothing without tuning."""
    if not plan.tried:
        return {}
    told: dict[str, Any] = {"tuning/trials": plan.trials}
    for method in plan.methods:
        varied = tuning.varied([trial for trial in plan.tried if trial.method == method.name])
        own = {RATE: plan.rate_of(method), **method.settings}
        prefix = f"tuning/{_clean(method.name)}"
        told[f"{prefix}/rst_seconds"] = plan.tuning_rst_seconds[method.name]
        told[f"{prefix}/tried"] = ", ".join(_range(*pair) for pair in varied.items())
        told[f"{prefix}/best"] = ", ".join(f"{name} {own.get(name)}" for name in varied)
    return told


def _range(name: str, values: Sequence[Any]) -> str:
    if any(isinstance(value, str) for value in values):
        return f"{name} {' '.join(dict.fromkeys(map(str, values)))}"
    return f"{name} {min(values):g} to {max(values):g}"


def reference_metrics(profile: Profile) -> dict[str, float]:
    """Return what each operation costs on the reference machine."""
    costs = {f"reference/{name}_seconds": seconds for name, seconds in profile.seconds.items()}
    costs |= {f"reference/{name}_joules": joules for name, joules in profile.joules.items()}
    return {**costs, "reference/additivity_error": profile.additivity_error}


def point_metrics(point: Point) -> dict[str, float]:
    """Return the metrics of an evaluation; RST is one too, so that it can be the x axis."""
    of_weights = {f"validation/{point.weights}": point.value} if point.weights else {}
    return {
        "validation/metric": point.value,
        **of_weights,
        "train/loss": point.train_loss,
        "train/learning_rate": point.learning_rate,
        X_AXIS: point.rst_seconds,
        **({} if point.updates is None else {"train/updates": point.updates}),
        **said_of_readings.point_metrics(point),
    }


def end_metrics(run: Run, result: TrainingResult, joules: Mapping[str, float]) -> dict[str, float]:
    """Return what a run has come to, and its account; joules are those of the reference."""
    metrics = {f"work/{line['operation']}_seconds": float(line["seconds"]) for line in run.account}
    metrics |= {
        **{f"work/rst_by_{name}_seconds": seconds for name, seconds in run.totals.items()},
        "work/rst_seconds": run.rst_seconds,
        "work/steps": run.steps,
        **({} if run.updates is None else {"work/updates": run.updates}),
        # Of the whole training, which several runs may share.
        "work/training_rst_seconds": result.rst_seconds,
        "work/training_measured_seconds": result.measured_seconds,
        "work/training_other_cores": result.other_cores,
        **_measured_metrics(result),
    }
    if (energy := reference_joules(charged_counts(run.account), joules)) is not None:
        metrics["work/rse_joules"] = energy
    if run.failure is None:
        metrics["final/metric"] = run.final
    if math.isfinite(run.test):
        metrics["final/test"] = run.test
    return metrics | said_of_readings.end_metrics(run)


def _measured_metrics(result: TrainingResult) -> dict[str, float]:
    """Return what was measured of a training; what was not is left out."""
    measurement = result.measurement
    if measurement is None:
        return {}
    found = {
        "over_rst": result.measured_seconds * measurement.ranks / result.rst_seconds
        if result.rst_seconds
        else None,
        "cpu_seconds": measurement.cpu_seconds,
        "gpu_active_seconds": measurement.gpu_active_seconds,
        "gpu_joules": measurement.gpu_joules,
        "processors_joules": measurement.host_joules,
    }
    found |= {f"{name}_seconds": each for name, each in measurement.operation_seconds.items()}
    return {f"measured/{name}": value for name, value in found.items() if value is not None}


def comparison_metrics(comparison: Comparison) -> dict[str, float]:
    """Return what a comparison has come to, means over seeds: the end and the saving by method."""
    if configs_of(comparison.plan):
        return {}
    found: dict[str, float] = {}
    for reading in comparison.plan.read:
        end = "end" if reading == FLOAT else f"end_{section_of(reading)}"
        for row in tables.rows(comparison, reading):
            if all(map(math.isfinite, row.ends)):
                found[f"{end}/{_clean(row.method)}"] = statistics.fmean(row.ends)
    for row in tables.rows(comparison):
        saved = row.savings.get(tables.TARGET_METHOD, (None,))
        known = [each for each in saved if each is not None]
        if len(known) == len(saved):
            name = f"saved_vs_constant_percent/{_clean(row.method)}"
            found[name] = 100 * statistics.fmean(known)
    seconds = math.fsum(result.measured_seconds for result in comparison.trainings)
    return {**found, "measured/training_seconds": seconds}


def range_of(comparison: Comparison) -> tuple[float, float] | None:
    """Return the values between which the mean curves are, where they are told apart."""
    begin = plots.FIRST_SHOWN * comparison.plan.budget.seconds
    late = []
    for method in comparison.plan.names:
        runs = [run for run in comparison.of(method) if not run.failure]
        late += [
            statistics.fmean(point.value for point in same)
            for same in zip(*(run.points for run in runs), strict=False)
            if same[0].rst_seconds >= begin
        ]
    if not late:
        return None
    margin = 0.05 * (max(late) - min(late)) or 0.05
    return min(late) - margin, max(late) + margin


def _clean(method: str) -> str:
    """Return a method's name as MLflow takes it in names: without brackets and slashes."""
    return re.sub(r"[^\w.-]+", "-", method).strip("-")


@dataclass(frozen=True)
class Report:
    """Table, verdict and plots of a comparison that is over.

    Attributes:
        text: in markdown.
        tables: by name; of each the columns.
    """

    kept: Kept
    comparison: Comparison
    text: str
    tables: Mapping[str, Mapping[str, Sequence[Any]]]

    @classmethod
    def of(cls, kept: Kept, comparison: Comparison) -> Report:
        """Return the report of a comparison, of the folder that it is kept in."""
        shown: dict[str, Mapping[str, Sequence[Any]]]
        if configs_of(comparison.plan):
            shown = {"results": ablation.columns(comparison)}
            return cls(kept, comparison, hide(report.markdown(comparison)), shown)
        shown = {"results": tables.columns(comparison)}
        if comparison.plan.tried:
            shown["tuning"] = tuning.columns(comparison.plan)
        return cls(kept, comparison, hide(report.markdown(comparison)), shown)

    @property
    def digest(self) -> str:
        """Return what tells it from any other, without drawing anything."""
        return hashlib.sha256(f"{self.text}{json.dumps(self.tables)}".encode()).hexdigest()

    def files(self) -> dict[str, bytes]:
        """Return all of it as files, by name; the plots are drawn now, which takes seconds."""
        pictures = {f"{name}.png": _png(each) for name, each in figures_of(self.comparison).items()}
        return {
            REPORT: html_report.page([(self.kept, self.comparison)]).encode(),
            "report.md": f"{self.text}\n\n{_links(pictures)}\n".encode(),
            **{f"{name}.json": _table(columns) for name, columns in self.tables.items()},
            **pictures,
        }

    def note(self, pictures: Sequence[str]) -> str:
        """Return it as a note with pictures below it, within MLflow's limit of a tag."""
        end = f"\n\n{_links(pictures)}"
        if len(self.text) + len(end) <= NOTE_CHARACTERS:
            return self.text + end
        more = "\n\n_The rest is in the artifact report.md._"
        kept = self.text[: NOTE_CHARACTERS - len(end) - len(more)].rpartition("\n")[0]
        return kept + more + end


def _links(pictures: Sequence[str] | Mapping[str, bytes]) -> str:
    return "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in pictures)


def _table(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Return a table as MLflow keeps it."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"columns": list(columns), "data": rows}).encode()


def _strings(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()
