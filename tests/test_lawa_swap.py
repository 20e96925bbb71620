"""Into the average and back: what others keep, write or interrupt meanwhile."""

from __future__ import annotations

import copy
import pickle
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import everything, same, small_model, train, weights_of
from torch import nn
from torch.nn.utils import parametrize

import lawa_opt
from lawa_opt import LAWA


def trained(steps: int = 6, **options: Any) -> tuple[nn.Module, LAWA]:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), k=3, every=1, **options)
    train(model, opt, steps)
    return model, opt


WAYS = ["averaged", "eval", "restart"]


def change(opt: LAWA, way: str) -> Any:
    """Put the average into the model; what is returned puts the live weights back."""
    if way == "averaged":
        block = opt.averaged()
        block.__enter__()
        return lambda: block.__exit__(None, None, None)
    if way == "eval":
        opt.eval()
        return opt.train
    opt.restart_from_average()
    return None


@pytest.mark.parametrize("way", WAYS)
def test_casts_that_autocast_keeps_are_made_again(way: str) -> None:
    model, opt = trained()
    x = torch.randn(64, 4)

    def evaluate() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    live = evaluate()
    average = opt.averaged_model(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want = average(x)
        assert torch.equal(model(x), live)
        leave = change(opt, way)
        assert torch.equal(model(x), want)
        assert not torch.equal(want, live)
        if leave:
            leave()
            assert torch.equal(model(x), live)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@pytest.mark.parametrize("way", WAYS)
def test_parametrizations_that_are_kept_are_made_again(way: str) -> None:
    model = small_model()
    parametrize.register_parametrization(model[0], "weight", Doubled())
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.5), k=3, every=1)
    train(model, opt, 6)
    want = opt.averaged_model(model)[0].weight
    with parametrize.cached():
        live = model[0].weight
        leave = change(opt, way)
        assert torch.equal(model[0].weight, want)
        assert not torch.equal(want, live)
        if leave:
            leave()
            assert torch.equal(model[0].weight, live)


def test_weights_loaded_after_eval_are_kept_and_told_of() -> None:
    model, opt = trained()
    best = small_model(seed=7).state_dict()
    opt.eval()
    model.load_state_dict(best)
    with pytest.warns(UserWarning, match=r"train\(\): 4 parameters were written to since eval"):
        opt.train()
    assert same(dict(best), dict(model.state_dict()))
    assert not opt.swaps
    train(model, opt, 1)


def test_weights_loaded_between_two_blocks_within_eval_are_kept() -> None:
    model, opt = trained()
    best = small_model(seed=7).state_dict()
    opt.eval()
    with opt.averaged(latest=1):
        pass
    model.load_state_dict(best)
    with opt.averaged(latest=1):
        pass
    with pytest.warns(UserWarning, match="4 parameters were written to since eval"):
        opt.train()
    assert same(dict(best), dict(model.state_dict()))


def test_blocks_within_eval_are_no_writing_of_others() -> None:
    model, opt = trained()
    live = weights_of(model)
    opt.eval()
    with opt.averaged(latest=1), opt.averaged(latest=2):
        pass
    opt.train()
    assert same(live, weights_of(model))


def test_statistics_recomputed_after_eval_are_no_new_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.5), k=3, every=1, buffers=model)
    train(model, opt, 6)
    live = copy.deepcopy(model.state_dict())
    opt.eval()
    torch.optim.swa_utils.update_bn([torch.randn(8, 4)], model)
    opt.train()
    assert same(live, copy.deepcopy(model.state_dict()))


def test_what_is_written_inside_a_block_is_lost_and_told_of() -> None:
    model, opt = trained()
    live = weights_of(model)
    message = r"4 parameters were written to inside averaged\(\)"
    with pytest.warns(UserWarning, match=message), opt.averaged():
        model.load_state_dict(small_model(seed=7).state_dict())
    assert same(live, weights_of(model))


def test_eval_tells_of_weights_that_the_window_has_not_seen() -> None:
    model, opt = trained()
    opt.eval()
    opt.train()
    model.load_state_dict(small_model(seed=7).state_dict())
    with pytest.warns(UserWarning, match=r"eval\(\): the weights were written to since the latest"):
        opt.eval()
    opt.train()
    assert same(dict(small_model(seed=7).state_dict()), dict(model.state_dict()))
    train(model, opt, 1)
    for copied in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        _, twin = copied((model, opt))
        twin.eval()
        twin.train()


def test_a_copy_made_while_averaged_gives_the_live_weights_back() -> None:
    model, opt = trained()
    live = weights_of(model)
    opt.eval()
    for copied in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        twin_model, twin = copied((model, opt))
        twin.train()
        assert same(live, weights_of(twin_model))
    opt.train()


@pytest.mark.parametrize("averaged_when_saved", [False, True])
@pytest.mark.parametrize("model_first", [False, True])
def test_loading_ends_the_average(averaged_when_saved: bool, model_first: bool) -> None:
    model, opt = trained(4)
    if averaged_when_saved:
        opt.eval()
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    if averaged_when_saved:
        opt.train()
    live = weights_of(model)
    train(model, opt, range(4, 7))
    opt.eval()
    loads = [lambda: model.load_state_dict(saved[0]), lambda: opt.load_state_dict(saved[1])]
    for load in loads if model_first else loads[::-1]:
        load()
    opt.train()
    assert same(live, weights_of(model))
    twin, again = trained(4)
    train(model, opt, range(4, 9))
    train(twin, again, range(4, 9))
    assert same(weights_of(model), weights_of(twin))
    assert same(opt.averaged_state_dict(model), again.averaged_state_dict(twin))


def test_loading_the_optimizer_alone_puts_the_live_weights_back() -> None:
    model, opt = trained()
    live, state_dict = weights_of(model), copy.deepcopy(opt.state_dict())
    opt.eval()
    opt.load_state_dict(state_dict)
    assert not opt.swaps
    assert same(live, weights_of(model))


PACKAGE = str(Path(lawa_opt.__file__).parent)


class Interrupt(BaseException):
    pass


def run_with_interrupt_at(number: int, work: Any) -> bool:
    """Run, with an interrupt at the so many-th line of the package; False if there are fewer."""
    left = [number]

    def on_line(_: Any, event: str, __: Any) -> Any:
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise Interrupt
        return on_line

    def but_the_first(_: Any, event: str, __: Any) -> Any:
        return on_line if event == "line" else but_the_first

    def on_call(frame: Any, _: str, __: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        # Nothing in Python can be done before the first line of __exit__.
        return but_the_first if frame.f_code.co_name == "__exit__" else on_line

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        work()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def within_a_block(opt: LAWA) -> None:
    with opt.averaged():
        pass


def within_eval(opt: LAWA) -> None:
    opt.eval()
    opt.train()


def within_nested_blocks(opt: LAWA) -> None:
    with opt.averaged(), opt.averaged(latest=1):
        pass


@pytest.mark.parametrize("work", [within_a_block, within_nested_blocks])
def test_an_interrupt_at_any_line_leaves_the_live_weights(work: Any) -> None:
    model, opt = trained()
    before = everything(model, opt)
    lines = 0
    while run_with_interrupt_at(lines + 1, lambda: work(opt)):
        lines += 1
        assert same(before, everything(model, opt)), lines
        assert not opt.swaps
    assert lines > 30, "the interrupts must have come inside"


def test_an_interrupt_of_eval_or_train_leaves_one_or_the_other() -> None:
    model, opt = trained()
    before = everything(model, opt)
    average = list(opt.averaged_state_dict(model).values())
    lines = 0
    while run_with_interrupt_at(lines + 1, lambda: within_eval(opt)):
        lines += 1
        assert same(average if opt.swaps else before["weights"], state_of(model, opt)), lines
        opt.train()
        assert same(before, everything(model, opt)), lines
    assert lines > 30


def state_of(model: nn.Module, opt: LAWA) -> Any:
    return weights_of(model) if opt.swaps else dict(model.state_dict())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_signals_at_random_moments_leave_the_live_weights() -> None:
    model = nn.Sequential(*(nn.Linear(60, 60) for _ in range(20)))
    opt = LAWA(torch.optim.SGD(model.parameters()), k=3, every="manual")
    for value in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        opt.collect()
    live = weights_of(model)
    started = time.perf_counter()
    within_a_block(opt)
    seconds = time.perf_counter() - started

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    draws = random.Random(0)
    interrupted = 0
    try:
        for _ in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-5, seconds))
                for _ in range(100):
                    within_a_block(opt)
            except Interrupt:
                interrupted += 1
                assert same(live, weights_of(model))
                assert not opt.swaps
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 30
