"""Into the average and back: what others keep, write or interrupt meanwhile."""

from __future__ import annotations

import copy
import itertools
import linecache
import pickle
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import lawa_opt
from lawa_opt import LAWA
from tests.support.small_training import everything, same, small_model, train, weights_of


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
    with pytest.warns(UserWarning, match=r"train\(\): 4 of 4 tensors were written to since eval"):
        opt.train()
    assert same(dict(best), dict(model.state_dict()))
    assert not opt.swaps
    train(model, opt, 1)


def test_weights_loaded_between_two_blocks_within_eval_are_kept() -> None:
    model, opt = trained()
    best = small_model(seed=7).state_dict()
    opt.eval()
    with opt.averaged(k=1):
        pass
    model.load_state_dict(best)
    with opt.averaged(k=1):
        pass
    with pytest.warns(UserWarning, match="4 of 4 tensors were written to since eval"):
        opt.train()
    assert same(dict(best), dict(model.state_dict()))


def test_blocks_within_eval_are_no_writing_of_others() -> None:
    model, opt = trained()
    live = weights_of(model)
    opt.eval()
    with opt.averaged(k=1), opt.averaged(k=2):
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
    message = r"4 of 4 tensors were written to inside averaged\(\)"
    with pytest.warns(UserWarning, match=message), opt.averaged():
        model.load_state_dict(small_model(seed=7).state_dict())
    assert same(live, weights_of(model))


def test_eval_tells_of_weights_that_the_window_has_not_seen() -> None:
    model, opt = trained()
    opt.eval()
    opt.train()
    model.load_state_dict(small_model(seed=7).state_dict())
    with pytest.warns(UserWarning, match=r"eval\(\): the weights were written to after the latest"):
        opt.eval()
    opt.train()
    assert same(dict(small_model(seed=7).state_dict()), dict(model.state_dict()))
    train(model, opt, 1)
    for copied in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        _, twin = copied((model, opt))
        twin.eval()
        twin.train()


def test_eval_tells_nothing_of_weights_that_were_collected_since() -> None:
    model, opt = trained()
    model.load_state_dict(small_model(seed=7).state_dict())
    opt.collect()
    opt.eval()  # which would fail by a warning
    opt.train()
    model.load_state_dict(small_model(seed=8).state_dict())
    with pytest.warns(UserWarning, match=r"eval\(\): the weights were written to after the latest"):
        opt.eval()
    opt.train()


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

    def but_for_try(frame: Any, event: str, _: Any) -> Any:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        inside = event == "line" and "try" not in line
        return on_line(frame, event, _) if inside else but_for_try

    def on_call(frame: Any, _: str, __: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        # Python knows no way to be inside `try` before its line; signals are held until then.
        return but_for_try if frame.f_code.co_name == "__exit__" else on_line

    before, handler = sys.gettrace(), signal.getsignal(signal.SIGINT)
    sys.settrace(on_call)
    try:
        work()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
        # A real one waits while handlers are put back; this one may come before they are.
        signal.signal(signal.SIGINT, handler)
    return False


def within_a_block(opt: LAWA) -> None:
    with opt.averaged():
        pass


def within_eval(opt: LAWA) -> None:
    opt.eval()
    opt.train()


def within_nested_blocks(opt: LAWA) -> None:
    with opt.averaged(), opt.averaged(k=1):
        pass


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    keyboard = signal.getsignal(signal.SIGINT)
    draws = random.Random(0)
    interrupted = 0
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-5, seconds))
                for _ in range(100):
                    within_a_block(opt)
            except Interrupt:
                interrupted += 1
                assert same(live, weights_of(model))
                assert not opt.swaps
            assert signal.getsignal(signal.SIGALRM) is interrupt
            assert signal.getsignal(signal.SIGINT) is keyboard
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 200


def two_over_one_model() -> tuple[nn.Module, LAWA, LAWA]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    one = LAWA(torch.optim.Muon(matrices, lr=0.02), k=3, every=1, buffers=model)
    other = LAWA(torch.optim.AdamW(rest, lr=0.01), k=2, every=1, buffers=model)
    for step in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)) * (step + 1)
        model.zero_grad()
        model(x).square().mean().backward()
        one.step()
        other.step()
    return model, one, other


@pytest.mark.slow
# In some orders one average is in the model without the other, as is told.
@pytest.mark.filterwarnings("ignore:LAWA. .* stayed live beside averaged weights")
@pytest.mark.parametrize("order", list(itertools.permutations(["enter a", "enter b", "a", "b"])))
def test_two_lawas_that_share_buffers_end_in_any_order(order: tuple[str, ...]) -> None:
    model, a, b = two_over_one_model()
    live = copy.deepcopy(model.state_dict())
    saved = []
    for what in order:
        {"enter a": a.eval, "enter b": b.eval, "a": a.train, "b": b.train}[what]()
        saved.append(copy.deepcopy((model.state_dict(), a.state_dict(), b.state_dict())))
    a.train()
    b.train()
    assert same(live, copy.deepcopy(model.state_dict()))
    for weights, *states in saved:
        twin, *lawas = two_over_one_model()
        twin.load_state_dict(weights)
        for lawa, state in zip(lawas, states, strict=True):
            lawa.load_state_dict(state)
        for lawa in lawas if order[0] == "enter a" else lawas[::-1]:
            lawa.train()
        assert same(live, copy.deepcopy(twin.state_dict()))


# One average is in the model without the other meanwhile, as is told.
@pytest.mark.filterwarnings("ignore:LAWA. .* stayed live beside averaged weights")
def test_live_values_that_another_lawa_was_handed_outlast_the_window_they_are_from() -> None:
    model, a, b = two_over_one_model()
    live = copy.deepcopy(list(model.buffers()))
    a.eval()
    b.eval()
    a.train()
    for _ in range(4):
        a.collect()
    b.train()
    assert same(live, list(model.buffers()))


def test_a_block_of_another_lawa_is_no_writing_of_others() -> None:
    model, a, b = two_over_one_model()
    live = copy.deepcopy(model.state_dict())
    a.eval()
    with b.averaged(), a.averaged(k=1), b.averaged(k=1):
        pass
    a.train()
    a.eval()
    a.train()
    assert same(live, copy.deepcopy(model.state_dict()))


def test_weights_swapped_in_and_back_are_no_writing_of_others() -> None:
    model, opt = trained()
    live = weights_of(model)
    opt.eval()
    with torch.no_grad():
        kept = weights_of(model)
        for parameter in model.parameters():
            parameter.zero_()
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.copy_(value)
    opt.train()
    assert same(live, weights_of(model))
    opt.eval()
    opt.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for parameter, value in zip(model.parameters(), live, strict=True):
            parameter.copy_(value)
    opt.eval()
    opt.train()


def test_of_weights_loaded_in_part_the_rest_is_live_again() -> None:
    model, opt = trained()
    live = weights_of(model)
    opt.eval()
    model[2].load_state_dict(small_model(seed=7)[2].state_dict())
    with pytest.warns(UserWarning, match="2 of 4 tensors were written to since eval"):
        opt.train()
    assert same(live[:2] + weights_of(small_model(seed=7))[2:], weights_of(model))


def test_a_block_can_be_entered_once_and_a_function_decorated() -> None:
    model, opt = trained()
    live = weights_of(model)
    block = opt.averaged()
    with block, pytest.raises(RuntimeError, match="call averaged\\(\\) again"):
        block.__enter__()
    assert same(live, weights_of(model))

    @opt.averaged()
    def evaluate() -> list[torch.Tensor]:
        return weights_of(model)

    for _ in range(2):
        assert same(evaluate(), list(opt.averaged_state_dict(model).values()))
        assert same(live, weights_of(model))


def test_a_tensor_that_cannot_be_written_back_jams_nothing() -> None:
    model, opt = trained(buffers=(scale := torch.ones(3),))
    live = weights_of(model)
    block = opt.averaged()
    block.__enter__()
    scale.data = torch.ones(1).expand(3)
    with pytest.raises(RuntimeError, match="single memory location"):
        block.__exit__(None, None, None)
    assert same(live, weights_of(model))
    assert not opt.swaps


@pytest.mark.slow
def test_an_interrupt_of_a_load_changes_nothing_or_loads_all() -> None:
    model, opt = trained(4)
    state_dict = copy.deepcopy(opt.state_dict())
    train(model, opt, range(4, 7))
    twin_model, twin = copy.deepcopy((model, opt))
    twin.load_state_dict(state_dict)
    before, after = everything(model, opt), everything(twin_model, twin)
    lines = 0
    while run_with_interrupt_at(lines + 1, lambda: opt.load_state_dict(state_dict)):
        lines += 1
        found = everything(model, opt)
        assert same(before, found) or same(after, found), lines
        before = found if same(after, found) else before
    assert lines > 100


def test_a_signal_within_a_block_is_handled_at_once() -> None:
    _, opt = trained()
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(frame))
    try:
        with opt.averaged(), opt.averaged(k=1):
            signal.raise_signal(signal.SIGUSR1)
            assert len(seen) == 1
            mine = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            assert callable(mine)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN, "set inside, it stays"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_block_in_another_thread_leaves_signals_alone() -> None:
    model, opt = trained()
    live = weights_of(model)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(within_a_block, opt).result()
    assert same(live, weights_of(model))
