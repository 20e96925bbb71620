"""Live weights that only the window holds, and a mean that is kept: beside slow copies of all."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lawa_opt import LAWA, kept_mean
from tests.support.small_training import same, small_model, train, weights_of


class Twin:
    """A LAWA, and copies of all that it is to have collected."""

    def __init__(self, kind: torch.dtype, k: int, **options: Any) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(kind)
        model[2].bias.requires_grad_(False)
        self.model, self.k = model, k
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        self.opt = LAWA(base, k=k, every="manual", buffers=model, **options)
        self.snapshots: list[list[Tensor]] = []
        self.saved: Any = None
        self.draws = torch.Generator().manual_seed(1)

    def tensors(self) -> list[Tensor]:
        return self.opt.average.tensors()

    def values(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors()]

    def noise(self, tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=self.draws).to(tensor.dtype)

    def mean(self, j: int) -> list[Tensor]:
        """Return the mean of the newest snapshots in float64, and of integers the newest."""
        return [
            torch.stack([value.double() for value in each]).mean(0)
            if each[0].is_floating_point()
            else each[-1]
            for each in zip(*self.snapshots[-j:], strict=True)
        ]

    def keep(self) -> None:
        self.snapshots = [*self.snapshots, self.values()][-self.k :]


def collect(twin: Twin) -> None:
    twin.opt.collect()
    twin.keep()


@torch.no_grad()
def collect_past_the_optimizer(twin: Twin) -> None:
    twin.opt.window.collect(twin.tensors())
    twin.keep()


def collect_in_inference_mode(twin: Twin) -> None:
    with torch.inference_mode():
        twin.opt.window.collect(twin.tensors())
    twin.keep()


def step(twin: Twin) -> None:
    if not twin.opt.swaps:
        twin.model(
            torch.randn(5, 3, generator=twin.draws).to(twin.tensors()[0].dtype)
        ).sum().backward()
        twin.opt.step()


@torch.no_grad()
def write(twin: Twin) -> None:
    for tensor in twin.tensors():
        if tensor.is_floating_point():
            tensor.add_(twin.noise(tensor))


def write_past_the_counts(twin: Twin) -> None:
    """As weights are clipped by some: torch does not count what is written to `.data`."""
    for parameter in twin.model.parameters():
        parameter.data.add_(twin.noise(parameter))


def one_number(value: float) -> Callable[[Twin], None]:
    def put(twin: Twin) -> None:
        twin.model[2].weight.data[-1, -1] = value

    return put


def flip_the_sign_of_zero(twin: Twin) -> None:
    weight = twin.model[2].weight.data[-1, -1:]
    weight.copy_(-0.0 if weight.signbit().logical_not() else 0.0)


def load_the_model(twin: Twin) -> None:
    state = {
        name: twin.noise(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in twin.model.state_dict().items()
    }
    twin.model.load_state_dict(state)


def save(twin: Twin) -> None:
    twin.saved = copy.deepcopy((twin.opt.state_dict(), twin.snapshots))


def load(twin: Twin) -> None:
    if twin.saved is not None and not twin.opt.swaps:
        state, snapshots = copy.deepcopy(twin.saved)
        # Saved while averaged, it gives the live weights of then.
        twin.opt.load_state_dict(state)
        twin.opt.train()
        twin.snapshots = snapshots


def copy_all(twin: Twin) -> None:
    """Go on with a copy: what it holds is its own."""
    pair = (twin.model, twin.opt)
    for copied in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        _, opt = copied
        opt.train()
        opt.collect()


def clear(twin: Twin) -> None:
    twin.opt.window.clear()
    twin.snapshots = []


def restart(twin: Twin) -> None:
    if twin.snapshots and not twin.opt.swaps:
        twin.opt.restart_from_average()


def nothing(twin: Twin) -> None:
    pass


WITHIN = [
    nothing, collect_past_the_optimizer, collect_in_inference_mode, write, write_past_the_counts,
    load_the_model, save, copy_all, clear,
]  # fmt: skip


def read(inner: list[Callable[[Twin], None]], j: int, way: str) -> Callable[[Twin], None]:
    def reading(twin: Twin) -> None:
        if not twin.snapshots:
            return
        before, latest = twin.values(), min(j, len(twin.snapshots))
        until_train = way == "eval" and not twin.opt.swaps
        want = twin.mean(len(twin.snapshots) if until_train else latest)

        def check() -> None:
            close = {"rtol": 2e-2, "atol": 2e-2} if before[0].dtype != torch.float32 else {}
            for found, wanted in zip(twin.values(), want, strict=True):
                torch.testing.assert_close(found, wanted.to(found.dtype), equal_nan=True, **close)

        if until_train:
            twin.opt.eval()
            check()
            twin.opt.train()
        else:
            with twin.opt.averaged(k=latest):
                check()
                for do in inner:
                    do(twin)
        assert same(before, twin.values())

    return reading


def readings(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    ways = st.sampled_from(["averaged", "averaged", "eval"])
    return st.builds(read, st.lists(inner, max_size=3), st.integers(1, 3), ways)


OUTSIDE = [
    collect, collect, step, write, write_past_the_counts, one_number(float("nan")),
    one_number(float("inf")), flip_the_sign_of_zero, load_the_model, save, load, restart,
    collect_in_inference_mode, copy_all,
]  # fmt: skip
INNER = st.sampled_from(WITHIN)
WORK = st.lists(
    st.one_of(st.sampled_from(OUTSIDE), readings(st.one_of(INNER, readings(INNER)))),
    min_size=1,
    max_size=8,
)
PAST = read([collect_past_the_optimizer] * 3, 1, "averaged")
READ = read([], 1, "averaged")
WINDOWS = st.sampled_from([None, torch.bfloat16, torch.float32])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@pytest.mark.slow
@given(WORK, DTYPES, WINDOWS, st.integers(1, 3), st.booleans())
@example([collect, write, collect, PAST], torch.float32, None, 2, False)
@example([collect, write_past_the_counts, READ], torch.float32, None, 2, False)
@example([collect, flip_the_sign_of_zero, READ], torch.float32, None, 1, True)
@example([collect, write, READ, collect, read([], 3, "eval")], torch.float32, None, 2, True)
def test_whatever_happens_the_live_weights_are_back(
    work: list[Callable[[Twin], None]],
    dtype: torch.dtype,
    window: torch.dtype | None,
    k: int,
    cache: bool,
) -> None:
    if window is not None and torch.promote_types(dtype, window) != window:
        window = None  # what a narrower window rounds is not for this test
    twin = Twin(dtype, k, dtype=window, cache=cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for do in work:
            do(twin)
        read([], k, "averaged")(twin)


def allocated(work: Callable[[], object]) -> int:
    """Return the bytes that torch hands out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profiler.events())


def read_once(opt: LAWA) -> Callable[[], None]:
    def reading() -> None:
        with opt.averaged():
            pass

    return reading


@pytest.mark.slow
def test_live_weights_that_the_window_holds_are_not_copied() -> None:
    model = nn.Sequential(nn.Linear(700, 700), nn.Linear(700, 700))
    opt = LAWA(torch.optim.SGD(model.parameters()), k=2, every="manual")
    opt.collect()
    opt.collect()
    held = allocated(read_once(opt))
    model[1].weight.data[-1, -1] += 1
    copied = allocated(read_once(opt))
    parameters = sum(p.nbytes for p in model.parameters())
    assert 0.9 * parameters < copied - held < 1.6 * parameters


def test_a_second_reading_makes_no_other_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(*args: Any, **kwargs: Any) -> None:
        made.append(1)
        weighted_mean(*args, **kwargs)

    weighted_mean = kept_mean.weighted_mean
    monkeypatch.setattr(kept_mean, "weighted_mean", counted)
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.5), k=3, every=2, cache=True)
    train(model, opt, 5)
    counts = []
    for reading in (
        lambda: opt.averaged_state_dict(model),
        read_once(opt),
        lambda: train(model, opt, range(5, 6)),  # collects
        read_once(opt),
        lambda: train(model, opt, range(6, 7)),  # does not
        read_once(opt),
        lambda: opt.averaged_state_dict(model, k=2),
        lambda: opt.averaged_state_dict(model, k=2, weights="linear"),
        lambda: opt.averaged_state_dict(model, k=2, weights="linear", dtype=torch.float64),
    ):
        reading()
        counts.append(len(made))
    assert counts == [1, 1, 1, 2, 2, 2, 3, 4, 5]


def test_a_load_in_place_of_the_lent_snapshot_is_told_of() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.5), k=3, every=1)
    train(model, opt, 3)
    state = opt.state_dict()
    live = weights_of(model)
    with pytest.warns(UserWarning, match="the window was written to in place"), opt.averaged():
        state["state"][0]["lawa_2"].zero_()
    assert same(live[1:], weights_of(model)[1:])
    live = weights_of(model)
    with opt.averaged():
        opt.state_dict()["state"][0]["lawa_2"].add_(1)  # asked for now, it does not lend
    assert same(live, weights_of(model))


def test_a_model_without_numbers_is_read_right_after_a_collect() -> None:
    model = nn.Linear(3, 2, device="meta")
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=2, every="manual")
    opt.collect()
    with opt.averaged():
        assert all(parameter.is_meta for parameter in model.parameters())


def test_whether_to_keep_the_mean_is_said_by_true_or_false() -> None:
    base = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="cache must be True or False: 'yes'"):
        LAWA(base, k=2, cache="yes")
