"""Say what a kept comparison is of, so that no other is mixed with it."""

from __future__ import annotations

import shlex
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from baselines.experiment.plan import Plan, Trial
from baselines.methods.averagers import AveragerPart
from baselines.methods.method import Method
from baselines.methods.names import file_digests, files_in, find
from baselines.methods.part import MethodError
from baselines.training.rounding import FLOAT
from baselines.workloads.base import Workload
from timing import Budget, Policy
from timing.calibration.environment import this_software
from timing.secrets import hide

MANIFEST, REFERENCE = "comparison.json", "reference.json"


class FolderError(ValueError):
    """A folder that holds no comparison, or a damaged one."""


class KeptMethod(BaseModel):
    """A method as it is kept in a file; attributes are those of `Method`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    share: float
    learning_rate: float | None
    settings: dict[str, int | float | str]

    @classmethod
    def of(cls, method: Method) -> KeptMethod:
        """Return what is kept of a method."""
        return cls.model_validate({name: getattr(method, name) for name in cls.model_fields})

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that it would run: by its name, whatever else the folder says."""
        return files_in(self.name)

    def method(self, *, run_files: bool) -> Method:
        """Return the method.

        Args:
            run_files: whether files that it names are run; if not, it can be shown and not trained.

        Raises:
            MethodError: it is at fault.
        """
        if self.files and not run_files:
            kept = _Kept(tuple(self.settings.items()))
            return Method(
                self.name,
                self.title,
                averager=kept,
                share=self.share,
                learning_rate=self.learning_rate,
                files=self.files,
            )
        found = find(self.name).with_settings(self.settings)
        return replace(found, learning_rate=self.learning_rate)


@dataclass(frozen=True)
class _Kept(AveragerPart):
    """Stands for the parts of a method of which a file is not run."""

    values: tuple[tuple[str, object], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of all its parts."""
        return dict(self.values)

    @property
    def changed(self) -> dict[str, Any]:
        """Return none: the defaults are in the file."""
        return {}

    def begin(self, *_: object) -> NoReturn:
        """Refuse to be trained."""
        raise RuntimeError("only the results of this method were read, not its file")


# What torch.manual_seed takes.
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class Manifest(BaseModel):
    """A plan as it is kept in a file; `id` and `command` alone say nothing of what is compared.

    Attributes are those of `Plan` and `Workload`. Results depend on the versions of the software
    and on the number of threads, so these belong to it.
    """

    # A trial that failed has an infinite value.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    id: str
    # What was typed, for whoever looks at it in MLflow.
    command: str = ""
    workload: str
    source: tuple[str, str | None] | None
    metric: str
    higher_is_better: bool = False
    signature: dict[str, str | int]
    data: dict[str, Any]
    methods: Annotated[tuple[KeptMethod, ...], Field(min_length=1)]
    method_files_sha256: dict[str, str]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    budget_seconds: float
    learning_rate: float
    evaluations: Annotated[int, Field(ge=1, le=10**9)]
    policy: Policy
    read_test: bool
    trials: int
    tried: tuple[Trial, ...]
    free: tuple[str, ...] = ()
    read_as: tuple[str, ...] = (FLOAT,)
    threads: int
    torch: str
    lawa_opt: str

    @classmethod
    def of(cls, plan: Plan) -> Manifest:
        """Return the manifest of a plan, as this process would run it."""
        software = this_software()
        return cls(
            id=uuid.uuid4().hex,
            command=hide(shlex.join(sys.orig_argv))[:5000],
            workload=plan.workload.name,
            source=plan.workload.source,
            metric=plan.workload.metric,
            higher_is_better=plan.workload.higher_is_better,
            signature=plan.workload.signature,
            data=plan.workload.data,
            methods=tuple(map(KeptMethod.of, plan.methods)),
            method_files_sha256=file_digests(plan.methods),
            seeds=plan.seeds,
            budget_seconds=plan.budget.seconds,
            learning_rate=plan.learning_rate,
            evaluations=plan.evaluations,
            policy=plan.policy,
            read_test=plan.read_test,
            trials=plan.trials,
            tried=plan.tried,
            free=plan.free,
            read_as=plan.read,
            threads=torch.get_num_threads(),
            torch=software.torch,
            lawa_opt=software.lawa_opt,
        )

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was not asked for, as earlier versions could not: so it is the same."""
        told: dict[str, Any] = write(self)
        if self.read_as == (FLOAT,):
            told.pop("read_as", None)
        return told

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return what is asked for in a folder.

        Raises:
            FolderError: it has no manifest, or a damaged one.
        """
        path = folder / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise FolderError(f"{folder} holds no comparison: {path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FolderError(f"{path} is damaged: {where}: {first['msg']}") from error

    def plan(self, workload: Workload, *, run_files: bool = False) -> Plan:
        """Return the plan, with a workload that was loaded again.

        Args:
            workload: that it is of.
            run_files: whether the files of methods are run.

        Raises:
            FolderError: a method is not what it was.
        """
        try:
            methods = tuple(kept.method(run_files=run_files) for kept in self.methods)
        except MethodError as error:
            raise FolderError(f"the comparison names a method that is none: {error}") from error
        return Plan(
            workload=workload,
            methods=methods,
            seeds=self.seeds,
            budget=Budget(self.budget_seconds),
            learning_rate=self.learning_rate,
            evaluations=self.evaluations,
            policy=self.policy,
            read_test=self.read_test,
            trials=self.trials,
            tried=self.tried,
            free=self.free,
            read=self.read_as,
        )

    @property
    def files_sha256(self) -> dict[str, str]:
        """Return the Python files that it names, with their digests at the beginning."""
        named = dict.fromkeys(file for method in self.methods for file in method.files)
        own = {file: self.method_files_sha256.get(file, "") for file in named}
        if self.source and self.source[0].endswith(".py"):
            own[self.source[0]] = str(self.data.get("file_sha256", ""))
        return own

    @property
    def fingerprint(self) -> str:
        """Return all that tells one comparison from another, as JSON."""
        return self.model_dump_json(exclude={"id", "command"})
