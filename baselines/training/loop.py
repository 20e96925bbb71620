"""The training loop: one training, and the methods that follow it under their budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines.methods.method import Method
from baselines.training import distributed
from baselines.training.checkpoint import CheckpointError, Checkpoints, StorageError
from baselines.training.method_run import MethodRun
from baselines.training.readings import read_rounded
from baselines.training.results import Point, TrainingResult, Weights
from baselines.training.rounding import Rounding, check, what_is_rounded
from baselines.training.training import Training
from baselines.workloads.base import Workload
from timing import Budget, Policy, tracebacks

# So many of each tensor tell live weights from an average, which differs from them in nearly all.
NUMBERS_OF_EACH = 1000


def seed_step(seed: int, step: int, rank: int) -> None:
    """Let what a step draws (dropout) depend on seed, step and rank alone, on every device.

    A training that was cut off then goes on with the same draws. `torch.manual_seed` would do the
    same, and take a hundred microseconds.
    """
    digest = sha256(b"%d,%d,%d" % (seed, step, rank)).digest()
    number = int.from_bytes(digest[:7])
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def train(
    workload: Workload,
    methods: Sequence[Method],
    seed: int,
    budget: Budget,
    costs: Mapping[str, float],
    learning_rate: float,
    evaluations: int,
    on_point: Callable[[str, Point], None] = lambda *_: None,
    policy: Policy = "algoperf",
    *,
    checkpoints: Checkpoints | None = None,
    read_test: bool = True,
    on_end: Callable[[str, nn.Module, Tensor], None] = lambda *_: None,
    folder: Path | None = None,
    free: Sequence[str] = (),
    roundings: Sequence[Rounding] = (),
) -> TrainingResult:
    """Train until no method's budget can pay for another step and the reading that ends its run.

    Methods that only read a training, as an average of the constant rate does, can follow one
    together: each has its own account and ends where its own budget does, just as if it had trained
    alone. A step is charged with all that a method adds to it, and each reading of an average too,
    for it changes the weights or the statistics of the reported model; evaluation itself and the
    loading of data are counted, and charged by the policy `mlperf` alone. So the RST charged to a
    method is at most the budget, and falls short of it by less than one step. The learning rate
    follows the fraction of the budget spent before each step.

    Under `torchrun` every rank calls this, and takes every `world`-th batch: an optimizer step then
    is `world` training steps, and the account counts what all ranks have run. Rank 0 alone reads,
    evaluates, keeps checkpoints and tells of points.

    Args:
        workload: model and data.
        methods: those that follow this training. Several must have one recipe and one schedule,
            and neither may depend on what each has spent.
        seed: of initial weights and batches; the same for all methods of a pair.
        budget: reference seconds of each method.
        costs: reference seconds of each operation.
        learning_rate: the peak rate.
        evaluations: over the budget, evenly spaced, the last at its end.
        on_point: told of each method's evaluations, those before a checkpoint again at a resume.
        policy: which operations are charged.
        checkpoints: where the training is kept, and gone on from if it was cut off.
        read_test: whether the test part is read at the end of each run. That is for the report, and
            no policy charges it.
        on_end: told of each method's model in the weights that it reports, and of training inputs.
        folder: where the traceback of an error is written.
        free: operations that are not charged, whatever the policy says.
        roundings: at each evaluation a copy of what is evaluated is rounded and evaluated too,
            which changes nothing else: off the clock, charged to no run.

    Returns:
        A run for each method. Where the loss or the metric is no finite number any more, it ends at
        once, with `failure` set. Where the training raised, all end with the error as failure.

    Raises:
        ValueError: the budget is smaller than one step, the methods cannot share a training, or the
            model cannot be rounded.
        KeyError: an operation has no cost.
        StorageError: a checkpoint cannot be written.
        CheckpointError: there are checkpoints, and none is a whole one of this training.
    """
    alike = len({(method.recipe, method.schedule) for method in methods}) == 1
    if len(methods) > 1 and not (alike and all(method.shares_training for method in methods)):
        raise ValueError(
            f"{', '.join(method.name for method in methods)} cannot follow one training: their "
            "recipes or schedules differ, or depend on what each has spent"
        )
    begin = partial(Training, workload, methods, seed, budget, costs, learning_rate, policy, free)
    training = checkpoints.resume(begin) if checkpoints else begin()
    for rounding in roundings:
        check(training.model, rounding)
    for run in training.runs:
        for point in run.points:
            on_point(run.name, point)
    error = None
    try:
        _run(training, evaluations, on_point, checkpoints, on_end, roundings, read_test=read_test)
    except (StorageError, CheckpointError):
        raise
    # A file of a user's own may call sys.exit(), too.
    except (Exception, SystemExit) as raised:
        if distributed.world_size() > 1:
            # The other ranks wait for this one, until `torchrun` sees that it ended.
            raise
        error = tracebacks.in_one_line(raised, training.place_of(raised))
        if not tracebacks.place_of(raised):
            error = f"{error}; {tracebacks.write_down(raised, folder)}"
        for run in training.active:
            run.error = f"at step {training.step}: {error}"
    return training.result(error)


def _run(
    training: Training,
    evaluations: int,
    on_point: Callable[[str, Point], None],
    checkpoints: Checkpoints | None,
    on_end: Callable[[str, nn.Module, Tensor], None],
    roundings: Sequence[Rounding],
    *,
    read_test: bool,
) -> None:
    """Train to the end of all budgets."""
    workload, watch = training.workload, training.watch
    rank = distributed.rank()
    first = rank == 0
    device = next(training.model.parameters()).device

    def evaluate(run: MethodRun, operations: Mapping[str, int], *, last: bool) -> None:
        for operation, times in operations.items():
            run.account.charge(operation, times)
        with watch.paused():
            live = sample(training.model) if first else []
        for own in run.averager.models:
            training.recipe.shape(own)
        here = run.averager.evaluation_model()[0] if first else nullcontext(training.model)
        with watch.reading(operations), here as reported, watch.beside():
            is_live = distributed.broadcast_from_rank0(
                sample(reported) == live if first else None, device
            )
            with watch.evaluation():
                found = workload.evaluate(reported) if first else None
            value = distributed.broadcast_from_rank0(found, device)
            read = read_rounded(reported, roundings, workload.evaluate, device)
            run.account.charge("evaluate")
            rate = float(training.schedule.get_last_lr()[0])
            charged = run.account.rst_seconds
            weights: Weights = "live" if is_live else "averaged"
            loss = run.mean_loss()
            step, updates = training.step, training.updates
            point = Point(step, charged, value, loss, rate, weights, updates, read)
            run.points.append(point)
            if first:
                on_point(run.name, point)
            run.ended = last or run.failure is not None
            if run.ended and run.failure is None:
                if read_test:
                    test = workload.evaluate_test(reported) if first else None
                    run.test = distributed.broadcast_from_rank0(test, device)
                    run.read_test = read_rounded(
                        reported, roundings, workload.evaluate_test, device
                    )
                if first:
                    run.rounded = {each.name: what_is_rounded(reported, each) for each in roundings}
                    batch = training.batches.latest or next(training.batches)
                    on_end(run.name, reported, batch[0])

    with watch:
        while active := training.active:
            seed_step(training.seed, training.step, rank)
            training.next_step()
            for run in active:
                if not run.can_pay:
                    # In full even if there is nothing to read, so that every run ends alike.
                    evaluate(run, run.reading, last=True)
                elif run.is_due(evaluations):
                    evaluate(run, run.averager.evaluation_model()[1], last=False)
            if checkpoints and first and checkpoints.due:
                with watch.paused():
                    checkpoints.save(training.step, training.state_dict())


def sample(model: nn.Module) -> list[bytes]:
    """Return the first numbers of each parameter as bytes, by which NaN equals itself."""
    return [
        parameter.detach().reshape(-1)[:NUMBERS_OF_EACH].cpu().view(torch.uint8).numpy().tobytes()
        for parameter in model.parameters()
    ]
