"""The mean of the window against a slow and obvious one in float64."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lawa_opt import LAWA, reduction
from lawa_opt.layout import Layout
from lawa_opt.reduction import reference_mean, weighted_mean
from lawa_opt.storage import Snapshots, Storage
from tests.support.small_training import Replay, bits, loss_of, small_model, train, weights_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64]
SHAPES = [(), (0,), (3, 0, 2), (1,), (5,), (17,), (7, 9), (65, 5), (3, 4, 5, 2)]
LAYOUTS = ["contiguous", "transposed", "channels_last", "with gaps"]


def naive_snapshots(
    weights: list[Any], k: int, every: int | str, horizon: float, start: int
) -> list:
    """The k latest of the weights after each step that are due by the documented rule."""
    snapshots: list[Any] = []
    newest = 0
    for step, weight in enumerate(weights, start=1):
        age = max(1, horizon * step / k)
        due = step - newest >= age if every == "auto" else step % every == 0
        if due and step >= start:
            snapshots.append(weight)
            newest = step
    return snapshots[-k:]


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between numbers of a dtype at these values."""
    info = torch.finfo(dtype)
    exponents = torch.frexp(values.abs().clamp_min(info.tiny))[1] - 1
    return torch.ldexp(torch.full_like(values, info.eps), exponents)


def uniform_mean(snapshots: list[Tensor]) -> Tensor:
    return reference_mean(snapshots, [1.0] * len(snapshots))


def assert_is_mean(got: Tensor, snapshots: list[Tensor], want: Tensor | None = None) -> None:
    """Within 1e-6 of the snapshots' RMS, and in a 16-bit type one unit in the last place more."""
    want = uniform_mean(snapshots) if want is None else want
    if not want.numel():
        return
    error = (got.to(want.dtype) - want).abs()
    rms = torch.stack([s.to(want.dtype) for s in snapshots]).abs().square().mean().sqrt()
    is_wide = {got.dtype, snapshots[0].dtype} == {torch.float64}
    bound = (1e-14 if is_wide else 1e-6) * rms
    if got.dtype in (torch.bfloat16, torch.float16):
        bound = bound + ulp(want, got.dtype)
    assert (error <= bound).all()


def laid_out(values: Tensor, layout: str) -> Tensor:
    if layout == "channels_last" and values.dim() == 4:
        return values.to(memory_format=torch.channels_last)
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "with gaps" and values.dim() >= 1:
        return torch.stack([values, values], dim=-1)[..., 0]
    return values


def random_weights(
    shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], steps: int, seed: int
) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        scale = 10.0 ** float(torch.empty(()).uniform_(-3, 3, generator=generator))
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return (scale * torch.randn(shape, dtype=wide, generator=generator)).to(dtype)

    return [[draw(*kind) for kind in zip(shapes, dtypes, strict=True)] for _ in range(steps)]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mean_over_any_training(data: st.DataObject) -> None:
    kinds = data.draw(
        st.lists(
            st.tuples(*map(st.sampled_from, (SHAPES, DTYPES, LAYOUTS))), min_size=1, max_size=6
        )
    )
    shapes, dtypes, _ = map(list, zip(*kinds, strict=True))
    k = data.draw(st.integers(1, 6))
    every = data.draw(st.sampled_from([1, 2, 3, 7, "auto"]))
    horizon = data.draw(st.sampled_from([0.125, 0.5, 1.0]))
    start = data.draw(st.sampled_from([1, 1, 5]))
    weights = random_weights(
        shapes, dtypes, data.draw(st.integers(0, 25)), data.draw(st.integers(0, 2**32))
    )
    parameters = [
        nn.Parameter(laid_out(torch.ones(shape, dtype=dtype), layout))
        for shape, dtype, layout in kinds
    ]
    opt = LAWA(Replay(parameters, weights), k=k, every=every, horizon=horizon, start=start)
    with pytest.MonkeyPatch.context() as patch:  # so that small tensors have several tiles
        patch.setattr(reduction, "TILE", {"cpu": 32})
        patch.setattr(reduction, "SMALL", {"cpu": 8})
        for dtype in reduction.BLOCKS:
            patch.setitem(reduction.BLOCKS, dtype, 16)
        for _ in weights:
            opt.step()
        held = naive_snapshots(weights, k, every, horizon, start)
        assert opt.num_snapshots == len(held)
        for latest in range(1, len(held) + 1):
            with opt.averaged(latest):
                for index, parameter in enumerate(parameters):
                    assert_is_mean(parameter.detach(), [w[index] for w in held[-latest:]])
    if weights:
        assert [bits(p) for p in parameters] == [bits(value) for value in weights[-1]]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    weights=st.lists(st.just(0.0) | st.just(1.0) | st.floats(0.01, 10), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    out_dtype=st.sampled_from([None, torch.float32, torch.float64]),
    exact=st.booleans(),
    first=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_the_weighted_mean_is_that_of_its_slow_twin(
    weights: list[float],
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    exact: bool,
    first: int,
    seed: int,
) -> None:
    if not any(weights):
        weights[-1] = 1.0
    count, k = len(weights), 6
    snapshots = random_weights([(7, 9), (40,), ()], [dtype] * 3, count, seed)
    for snapshot in snapshots[1:]:
        snapshot[1] = snapshots[0][1]
    tensors = [torch.zeros_like(tensor) for tensor in snapshots[0]]
    layout = Layout(tensors, reduction.cut_for(dtype, tensors[0].device))
    storage = Storage(layout, k, dtype, tensors[0].device, None)
    slots = [(first + i) % k for i in range(count)]
    for slot, snapshot in zip(slots, snapshots, strict=True):
        storage.write(slot, snapshot)
    kind = None if dtype.is_complex else out_dtype
    stored = [torch.empty_like(tensor, dtype=kind) for tensor in tensors]
    weighted_mean(Snapshots(storage, slots), weights, stored, exact=exact)
    one_by_one = [torch.empty(tensor.numel(), dtype=kind or dtype) for tensor in tensors]
    rows = [partial(map, Tensor.flatten, snapshot) for snapshot in snapshots]
    weighted_mean(rows, weights, one_by_one)
    for got in (stored, one_by_one):
        for index, mean in enumerate(got):
            rows = [snapshot[index].reshape(-1) for snapshot in snapshots]
            assert_is_mean(mean.reshape(-1), rows, reference_mean(rows, weights))
        if exact or got is one_by_one:
            assert torch.equal(got[1].reshape(-1), snapshots[0][1].to(got[1].dtype))


@pytest.mark.parametrize("shape", [(1_200_000,), (1_400, 800)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_of_tensors_larger_than_a_tile(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    size = torch.Size(shape).numel()
    assert size > reduction.TILE["cpu"]
    shapes = [(3,), shape, (100, 100), (70_000,)]
    weights = random_weights(shapes, [dtype] * 4, 3, seed=1)
    parameters = [nn.Parameter(torch.zeros(s, dtype=dtype)) for s in shapes]
    opt = LAWA(Replay(parameters, weights), k=3, every=1)
    for _ in weights:
        opt.step()
    with opt.averaged():
        for index, parameter in enumerate(parameters):
            assert_is_mean(parameter.detach(), [w[index] for w in weights])


@pytest.mark.parametrize("k", [2, 3, 5, 7])
def test_bfloat16_is_rounded_once(k: int) -> None:
    shapes = [(1_200_000,), (300, 300), (11,)]
    weights = random_weights(shapes, [torch.bfloat16] * 3, k, seed=7)
    parameters = [nn.Parameter(torch.full(s, torch.nan, dtype=torch.bfloat16)) for s in shapes]
    opt = LAWA(Replay(parameters, weights), k=k, every=1)
    for _ in weights:
        opt.step()
    with opt.averaged():
        for index, parameter in enumerate(parameters):
            snapshots = [w[index] for w in weights]
            want, rms = uniform_mean(snapshots), torch.stack(snapshots).double().square().mean()
            error = (parameter.detach().double() - want).abs()
            # The weight 1 / k is itself known to 15 bits or more, 1 / 128 of a unit.
            assert (
                error <= ulp(want, torch.bfloat16) * (1 / 2 + 1 / 128) + 1e-6 * rms.sqrt()
            ).all()


def test_mean_when_the_memory_format_changes_between_collects() -> None:
    weights = random_weights([(2, 3, 4, 5)], [torch.float32], 4, seed=2)
    parameter = nn.Parameter(torch.zeros(2, 3, 4, 5))
    opt = LAWA(Replay([parameter], weights), k=4, every=1)
    for step in range(4):
        if step == 2:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
        opt.step()
    with opt.averaged():
        assert_is_mean(parameter.detach(), [w[0] for w in weights])
        assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_mean_when_the_dtype_of_the_model_changes_between_collects() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=4, every=1)
    train(model, opt, 2)
    model.double()
    live = weights_of(model)
    with opt.averaged():
        assert all(p.dtype == torch.float64 for p in model.parameters())
        assert not torch.equal(next(model.parameters()), live[0])
    assert all(map(torch.equal, live, weights_of(model)))


@pytest.mark.slow
def test_no_drift_over_100_000_collects() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(1000, 257, generator=generator)
    exact, coarse = nn.Parameter(torch.zeros(257)), nn.Parameter(torch.zeros(257).bfloat16())
    opt = LAWA(torch.optim.SGD([exact, coarse]), k=5, every="manual")
    latest: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for step in range(100_000):
            # A spike and a shrinking scale are what a running sum never recovers from.
            scale = 1e9 if step == 50_000 else 1e-4 + 100 * (1 - step / 100_000)
            torch.mul(rows[step % 1000], scale, out=exact.data)
            coarse.copy_(exact)
            opt.collect()
            if step >= 99_995:
                latest.append((exact.detach().clone(), coarse.detach().clone()))
    with opt.averaged():
        assert_is_mean(exact.detach(), [pair[0] for pair in latest])
        assert_is_mean(coarse.detach(), [pair[1] for pair in latest])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_non_finite_snapshot_is_forgotten_after_k_collects(dtype: torch.dtype) -> None:
    values = [1.0, 2.0, float("inf"), float("nan"), 1.5, 3.0, 4.5]
    parameter = nn.Parameter(torch.zeros(3, dtype=dtype))
    opt = LAWA(Replay([parameter], [[torch.full((3,), v)] for v in values]), k=3, every=1)
    for step in range(7):
        opt.step()
        with opt.averaged():
            assert parameter.isfinite().all() == (step in (0, 1, 6))
            assert parameter.isinf().all() == (step == 2)
    with opt.averaged():  # thirds of these are exact, in whatever order they are added up
        assert parameter.tolist() == [3.0, 3.0, 3.0]


def test_float16_does_not_overflow() -> None:
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    opt = LAWA(Replay([parameter], [[torch.full((4,), 6e4)]] * 6), k=6, every=1)
    for _ in range(6):
        opt.step()
    with opt.averaged():
        assert (parameter == torch.tensor(6e4, dtype=torch.float16)).all()


def test_settings_that_speed_up_products_leave_the_mean_alone() -> None:
    weights = random_weights([(100, 200)], [torch.float32], 5, seed=6)
    parameter = nn.Parameter(torch.zeros(100, 200))
    opt = LAWA(Replay([parameter], weights), k=5, every=1)
    for _ in weights:
        opt.step()
    with opt.averaged():
        want = bits(parameter)
    with torch.autocast("cpu", torch.bfloat16), opt.averaged():
        assert bits(parameter) == want
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), opt.averaged():
            assert_is_mean(parameter.detach(), [w[0] for w in weights])
    finally:
        torch.set_float32_matmul_precision(before)


READING_UNDER_A_SETTING = """
import torch
from lawa_opt import LAWA

{setting}
weights = torch.nn.Parameter(torch.ones(1_200_000))
opt = LAWA(torch.optim.SGD([weights]), k=5, every="manual")
for _ in range(5):
    opt.collect()
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    {work}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.fp32_precision = 'bf16'",
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    ],
)
def test_float32_snapshots_never_go_where_a_setting_narrows_products(setting: str) -> None:
    """Not seen in the numbers where the processor has no bfloat16; what was called tells."""

    def products(work: str) -> int:
        code = READING_UNDER_A_SETTING.format(setting=setting, work=work)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if "has no attribute 'matmul'" in done.stderr:
            pytest.skip("this torch has no such setting")
        assert done.returncode == 0, done.stderr
        return done.stdout.count("primitive,exec,cpu,matmul")

    if not products("torch.mv(torch.ones(5, 1_200_000).t(), torch.ones(5))"):
        pytest.skip("this torch does not narrow products on this processor")
    assert products("opt.eval()") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_defaults_that_a_user_sets_leave_the_mean_alone(dtype: torch.dtype) -> None:
    weights = random_weights([(100, 200)], [dtype], 5, seed=6)
    parameter = nn.Parameter(torch.zeros(100, 200, dtype=dtype))
    opt = LAWA(Replay([parameter], weights), k=5, every=1)
    for _ in weights:
        opt.step()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), opt.averaged():
            assert_is_mean(parameter.detach(), [w[0] for w in weights])
    finally:
        torch.set_default_dtype(before)


def test_a_partial_window_is_divided_by_the_number_held() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    opt = LAWA(Replay([parameter], [[torch.tensor([v])] for v in (4.0, 8.0)]), k=6, every=1)
    for mean in (4.0, 6.0):
        opt.step()
        with opt.averaged():
            assert parameter.item() == mean


def snapshots_in(opt: LAWA) -> list[bytes]:
    entries = opt.state_dict()["state"].values()
    return [bits(entry[f"lawa_{i}"]) for entry in entries for i in range(entry["lawa_held"])]


def test_reading_changes_no_snapshot_and_repeats() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=3, every=1)
    train(model, opt, 5)
    before = snapshots_in(opt)
    means = []
    for _ in range(2):
        with opt.averaged():
            means.append([bits(p) for p in model.parameters()])
    assert means[0] == means[1]
    assert before == snapshots_in(opt)


def test_snapshots_are_copies_of_the_weights_and_no_other_window_sees_them() -> None:
    models = [small_model(0), small_model(1)]
    opts = [LAWA(torch.optim.SGD(m.parameters(), lr=0.1), k=2, every="manual") for m in models]
    before = weights_of(models[0])
    opts[0].collect()
    train(models[0], opts[0], 2)
    assert (opts[0].num_snapshots, opts[1].num_snapshots) == (1, 0)
    with opts[0].averaged():
        assert all(map(torch.equal, before, weights_of(models[0])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_does_not_change_is_averaged_bit_for_bit(dtype: torch.dtype) -> None:
    values = torch.randn(700_000, generator=torch.Generator().manual_seed(4)).to(dtype)
    info = torch.finfo(dtype)
    values[:5] = torch.tensor([-0.0, info.max, info.tiny, info.smallest_normal / 2, info.min])
    frozen = nn.Parameter(values, requires_grad=False)
    moving = nn.Parameter(torch.ones(3))
    opt = LAWA(torch.optim.AdamW([frozen, moving]), k=5, every=1)
    before = bits(frozen)
    for _ in range(7):
        moving.grad = torch.ones(3)
        opt.step()
    with opt.averaged():
        assert bits(frozen) == before


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 6))
def test_a_bfloat16_window_of_float32_weights_is_within_its_documented_error(
    seed: int, k: int
) -> None:
    weights = random_weights([(50,)], [torch.float32], k, seed)
    parameter = nn.Parameter(torch.zeros(50))
    opt = LAWA(Replay([parameter], weights), k=k, every=1, dtype=torch.bfloat16)
    for _ in weights:
        opt.step()
    snapshots = [w[0] for w in weights]
    sizes = uniform_mean([snapshot.abs() for snapshot in snapshots])
    rounding = 1e-6 * torch.stack(snapshots).square().mean().sqrt()
    with opt.averaged():
        error = (parameter.detach().double() - uniform_mean(snapshots)).abs()
    assert (error <= 2**-8 * sizes + rounding).all()
    assert opt.state_dict()["state"][0]["lawa_0"].dtype == torch.bfloat16


def test_a_bfloat16_window_does_round() -> None:
    parameter = nn.Parameter(torch.full((1,), 1 + 2**-10))
    opt = LAWA(torch.optim.SGD([parameter]), every="manual", dtype=torch.bfloat16)
    opt.collect()
    with opt.averaged():
        assert parameter.item() == 1.0


def test_complex_parameters_keep_their_type_in_a_window_of_another() -> None:
    weights = random_weights([(9,), (9,)], [torch.complex64, torch.float32], 3, seed=5)
    parameters = [nn.Parameter(torch.zeros_like(value)) for value in weights[0]]
    opt = LAWA(Replay(parameters, weights), k=3, every=1, dtype=torch.float64)
    for _ in weights:
        opt.step()
    with opt.averaged():
        for index, parameter in enumerate(parameters):
            assert_is_mean(parameter.detach(), [w[index] for w in weights])
    kept = [entry["lawa_0"].dtype for entry in opt.state_dict()["state"].values()]
    assert kept == [torch.complex64, torch.float64]


def test_the_mean_of_bfloat16_weights_can_be_had_in_float32() -> None:
    model = small_model().bfloat16()
    opt = LAWA(torch.optim.SGD(model.parameters()), k=4, every="manual")
    snapshots = []
    for step in range(4):
        snapshots.append(random_weights([(8, 4)], [torch.bfloat16], 1, step)[0][0])
        model[0].weight.data.copy_(snapshots[-1])
        opt.collect()
    mean = opt.averaged_state_dict(model, dtype=torch.float32)["0.weight"]
    assert mean.dtype == torch.float32
    assert_is_mean(mean, snapshots)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_a_window_of_no_usable_type_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"dtype must be one of .*float32.*: {dtype}"):
        LAWA(torch.optim.SGD([nn.Parameter(torch.ones(1))]), dtype=dtype)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 5])
def test_memory_is_k_times_the_parameters(k: int, dtype: torch.dtype | None) -> None:
    model = nn.Linear(767, 768)
    opt = LAWA(torch.optim.SGD(model.parameters()), k=k, every="manual", dtype=dtype)
    assert opt.nbytes == 0
    opt.collect()
    itemsize = 4 if dtype is None else 2
    assert opt.nbytes == k * itemsize * 768 * 768


class Operations(TorchDispatchMode):
    """Names of the operations on tensors within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_is_made_a_tile_at_a_time_with_no_copy_of_snapshots(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.zeros(1_200_000, dtype=dtype))
    opt = LAWA(torch.optim.SGD([parameter]), k=5, every="manual")
    for _ in range(7):
        opt.collect()
    [ring] = opt.window.rings
    out = torch.empty_like(parameter)
    for latest in (5, 3):  # of slots 4, 0 and 1 the three, which are not side by side
        with torch.profiler.profile(profile_memory=True) as profile:
            ring.write_mean([out], latest)
        taken = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
        assert taken < 1.5 * out.nbytes


def test_a_collect_in_the_steady_state_is_one_copy_and_allocates_nothing() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=2, every="manual")
    opt.collect()
    with Operations() as operations:
        for _ in range(3):
            opt.collect()
    assert len(operations.names) == 3
    loss_of(model, 0).backward()
    with torch.profiler.profile(profile_memory=True) as profile:
        opt.collect()
    assert sum(event.self_cpu_memory_usage for event in profile.events()) == 0
