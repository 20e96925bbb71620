"""Harm done to LAWA itself: parts of `benchmarks/faults.py`."""

import random
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path

import rows
import torch

from lawa_opt import LAWA

# Threads that wait for one another make a step ten times slower where something else runs.
torch.set_num_threads(1)


class Interrupt(BaseException):
    """What the signal's handler raises."""


def interrupts(arguments, _):
    """Interrupt the way into averaged weights and back again and again."""
    model = torch.nn.Sequential(*(torch.nn.Linear(60, 60) for _ in range(20)))
    opt = LAWA(torch.optim.SGD(model.parameters()), k=3, every="manual")
    for value in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        opt.collect()
    count = 30 if arguments.quick else 3000
    moments = random.Random(arguments.seed)
    left, wrong = Counter(), Counter()

    def interrupt(*_):
        raise Interrupt

    def holds(value):
        return all(bool((parameter == value).all()) for parameter in model.parameters())

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(count):
            way = ("block", "eval and train")[number % 2]
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 3e-3))
                while True:
                    if way == "block":
                        with opt.averaged():
                            pass
                    else:
                        opt.eval()
                        opt.train()
            except Interrupt:
                left[way] += 1
                averaged = bool(opt.swaps)
                wrong[way] += not holds(1.0 if averaged else 2.0) or (averaged and way == "block")
                wrong["grad"] += not torch.is_grad_enabled()
                opt.train()
                wrong["train"] += not holds(2.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    size = f"{sum(p.numel() for p in model.parameters())} parameters, {left.total()} interrupts"
    return [
        rows.none("averages left in the model by a block", size, wrong["block"]),
        rows.none("half an average left by eval() or train()", size, wrong["eval and train"]),
        rows.none("live weights that train() did not bring back", size, wrong["train"]),
        rows.none("times that gradients were off afterwards", size, wrong["grad"]),
    ], []


def state_dicts(arguments, _):
    """Load changed state dicts, and count those that are neither refused nor loaded whole."""
    from hypothesis import HealthCheck, given, seed, settings

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.lawa_opt import test_load_or_refuse as cases

    check = cases.test_a_mutated_state_dict_is_refused_or_loaded_whole.hypothesis.inner_test
    count = 50 if arguments.quick else 2000
    wrong, tried = [], Counter()

    @seed(arguments.seed)
    @settings(
        deadline=None,
        max_examples=count,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases.mutated())
    def each(case):
        tried["all"] += 1
        try:
            check(case)
        # Counted, so that the others are tried too.
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")

    with warnings.catch_warnings(action="ignore"):
        each()
    size = f"{tried['all']} changed state dicts"
    return [rows.none("changed state dicts loaded in part", size, len(wrong))], wrong[:3]
