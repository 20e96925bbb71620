"""Say what a kept comparison is of, so that no other is mixed with it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baselines.experiment.comparison import Plan, Trial
from baselines.methods.method import file_digests, file_names
from baselines.methods.settings import Settings
from baselines.workloads.base import Workload
from timing import Budget, Policy
from timing.calibration.environment import this_software

MANIFEST, REFERENCE = "comparison.json", "reference.json"


class FolderError(ValueError):
    """A folder that holds no comparison, or a damaged one."""


# What torch.manual_seed takes.
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class Manifest(BaseModel):
    """A plan as it is kept in a file; `id` alone says nothing of what is compared.

    Attributes are those of `Plan` and `Workload`. Results depend on the versions of the software
    and on the number of threads, so these belong to it.
    """

    # A trial that failed has an infinite value.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    id: str
    workload: str
    source: tuple[str, str | None] | None
    metric: str
    signature: dict[str, str | int]
    data: dict[str, Any]
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    method_files_sha256: dict[str, str]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    budget_seconds: float
    settings: Settings
    tuned: dict[str, Settings]
    evaluations: Annotated[int, Field(ge=1, le=10**9)]
    policy: Policy
    read_test: bool
    trials: int
    tried: tuple[Trial, ...]
    threads: int
    torch: str
    lawa_opt: str

    @classmethod
    def of(cls, plan: Plan) -> Manifest:
        """Return the manifest of a plan, as this process would run it."""
        software = this_software()
        return cls(
            id=uuid.uuid4().hex,
            workload=plan.workload.name,
            source=plan.workload.source,
            metric=plan.workload.metric,
            signature=plan.workload.signature,
            data=plan.workload.data,
            methods=plan.methods,
            method_files_sha256=file_digests(plan.methods),
            seeds=plan.seeds,
            budget_seconds=plan.budget.seconds,
            settings=plan.settings,
            tuned=dict(plan.tuned),
            evaluations=plan.evaluations,
            policy=plan.policy,
            read_test=plan.read_test,
            trials=plan.trials,
            tried=plan.tried,
            threads=torch.get_num_threads(),
            torch=software.torch,
            lawa_opt=software.lawa_opt,
        )

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

    def plan(self, workload: Workload) -> Plan:
        """Return the plan, with a workload that was loaded again."""
        return Plan(
            workload=workload,
            methods=self.methods,
            seeds=self.seeds,
            budget=Budget(self.budget_seconds),
            settings=self.settings,
            evaluations=self.evaluations,
            policy=self.policy,
            tuned=self.tuned,
            read_test=self.read_test,
            trials=self.trials,
            tried=self.tried,
        )

    @property
    def files_sha256(self) -> dict[str, str]:
        """Return the Python files that it names, with their digests at the beginning."""
        own = {name: self.method_files_sha256.get(name, "") for name in file_names(self.methods)}
        if self.source and self.source[0].endswith(".py"):
            own[self.source[0]] = str(self.data.get("file_sha256", ""))
        return own

    @property
    def fingerprint(self) -> str:
        """Return all that tells one comparison from another, as JSON."""
        return self.model_dump_json(exclude={"id"})
