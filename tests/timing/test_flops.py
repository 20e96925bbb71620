"""FLOPs against counts done by hand, with dimensions that hypothesis draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from timing.calibration.flops import count_flops

sizes = st.integers(1, 7)
few = settings(max_examples=10, deadline=None)


@few
@given(batch=sizes, widths=st.lists(sizes, min_size=2, max_size=4))
def test_linear_layers(batch: int, widths: list[int]) -> None:
    def make() -> Callable[[], object]:
        model = nn.Sequential(
            *(nn.Sequential(nn.Linear(i, o), nn.GELU()) for i, o in itertools.pairwise(widths))
        )
        inputs = torch.empty(batch, widths[0])
        return lambda: model(inputs).sum().backward()

    products = [2 * batch * i * o for i, o in itertools.pairwise(widths)]
    # Forward, gradient of the weight, and of the input but for the data.
    assert count_flops(make).total == 3 * sum(products) - products[0]


@few
@given(
    batch=sizes,
    heads=sizes,
    queries=sizes,
    keys=sizes,
    width=sizes,
    values=sizes,
    causal=st.booleans(),
)
def test_attention(
    batch: int, heads: int, queries: int, keys: int, width: int, values: int, causal: bool
) -> None:
    def make() -> Callable[[], object]:
        q = torch.empty(batch, heads, queries, width, requires_grad=True)
        k = torch.empty(batch, heads, keys, width, requires_grad=True)
        v = torch.empty(batch, heads, keys, values, requires_grad=True)
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward()

    forward = 2 * batch * heads * queries * keys * (width + values)
    assert count_flops(make).total == 3 * forward


@few
@given(
    batch=sizes,
    groups=st.integers(1, 3),
    ins=st.integers(1, 3),
    outs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    trainable_input=st.booleans(),
)
def test_convolution(
    batch: int,
    groups: int,
    ins: int,
    outs: int,
    kernel: int,
    stride: int,
    padding: int,
    trainable_input: bool,
) -> None:
    height, width = 6, 5

    def make() -> Callable[[], object]:
        model = nn.Conv2d(
            groups * ins, groups * outs, kernel, stride, padding, groups=groups, bias=False
        )
        images = torch.empty(batch, groups * ins, height, width, requires_grad=trainable_input)
        return lambda: model(images).sum().backward()

    rows, columns = (
        len(range(0, size + 2 * padding - kernel + 1, stride)) for size in (height, width)
    )
    multiplications = batch * rows * columns * (groups * outs) * ins * kernel * kernel
    assert count_flops(make).total == 2 * multiplications * (3 if trainable_input else 2)


def test_transposed_convolution_in_groups() -> None:
    def make() -> Callable[[], object]:
        model = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False)
        images = torch.empty(2, 4, 8, 8, requires_grad=True)
        return lambda: model(images).sum().backward()

    # Each input element meets the filters of its group.
    assert count_flops(make).total == 3 * 2 * (2 * 4 * 8 * 8) * (6 // 2) * 3 * 3


@pytest.mark.slow
@few
@given(batch=sizes, times=sizes, ins=sizes, hidden=sizes)
def test_lstm(batch: int, times: int, ins: int, hidden: int) -> None:
    def make() -> Callable[[], object]:
        model = nn.LSTM(ins, hidden, batch_first=True)
        inputs = torch.empty(batch, times, ins)
        return lambda: model(inputs)[0].sum().backward()

    to_gates = 2 * batch * times * ins * 4 * hidden
    from_before = 2 * batch * hidden * 4 * hidden
    # The data and the first hidden state need no gradient.
    assert count_flops(make).total == 2 * to_gates + (3 * times - 1) * from_before


def test_products_with_vectors() -> None:
    def make() -> Callable[[], object]:
        a, b, x, y = (torch.empty(shape) for shape in ((5, 3), (2, 5, 3), (3,), (5,)))
        c = torch.empty(2, 3, 4)
        return lambda: (
            a @ x,
            torch.addmv(y, a, x, alpha=2),
            x @ x,
            torch.vdot(x, x),
            torch.addbmm(torch.empty(5, 4, device=a.device), b, c, beta=2),
        )

    found = count_flops(make).by_operation
    assert found == {
        "aten.mv": 30,
        "aten.addmv": 30,
        "aten.dot": 6,
        "aten.vdot": 6,
        "aten.addbmm": 2 * 2 * 5 * 3 * 4,
    }


def lstm() -> Callable[[], object]:
    model = nn.LSTM(8, 8, num_layers=2, bidirectional=True)
    inputs = torch.ones(5, 3, 8)
    return lambda: model(inputs)[0].sum().backward()


def attention() -> Callable[[], object]:
    q = torch.ones(2, 3, 5, 4, requires_grad=True)
    return lambda: F.scaled_dot_product_attention(q, q, q).sum().backward()


def transformer() -> Callable[[], object]:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    inputs = torch.ones(2, 6, 8)

    @torch.no_grad()
    def step() -> object:
        return model(inputs)

    return step


@pytest.mark.parametrize("make", [lstm, attention, transformer])
def test_fused_kernels_hide_nothing_on_any_device(make: Callable[[], Callable[[], object]]) -> None:
    # Left to itself the CPU has one operation for all of it, and that counts as nothing.
    assert count_flops(make, device="cpu").total == count_flops(make).total > 0


def test_the_step_itself_is_run_on_the_cpu() -> None:
    ran = []

    def make() -> Callable[[], object]:
        model = nn.Linear(4, 2, bias=False)
        inputs = torch.ones(3, 4)
        return lambda: ran.append(model(inputs).sum().item())

    assert count_flops(make, device="cpu").total == 2 * 3 * 4 * 2
    assert len(ran) == 1


def test_a_model_of_any_size_is_counted_without_memory() -> None:
    def make() -> Callable[[], object]:
        model = nn.Linear(10**6, 10**6)
        inputs = torch.empty(10**6, 10**6)
        return lambda: model(inputs).sum().backward()

    # Beyond the whole numbers that a float64 can tell apart.
    assert count_flops(make).total == 4 * 10**18


def test_what_counts_as_zero_is_named() -> None:
    @torch.library.custom_op("lawa_opt_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @double.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    def make() -> Callable[[], object]:
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        optimizer = torch.optim.AdamW(model.parameters())
        inputs = torch.empty(3, 4)

        def step() -> None:
            with torch.no_grad():
                double(double(inputs))
            model(inputs).view(12).sum().backward()
            optimizer.step()

        return step

    found = count_flops(make)
    assert found.by_operation == {"aten.addmm": 96, "aten.mm": 96}
    assert found.not_counted["lawa_opt_test.double"] == 2
    for name in ("relu", "_native_batch_norm_legit", "native_batch_norm_backward", "addcdiv_"):
        assert found.not_counted[f"aten.{name}"] >= 1
    assert not found.not_counted.keys() & {"aten.view", "aten.t", "aten.addmm", "aten.mm"}


@pytest.mark.parametrize("reading", ["item", "fused"])
def test_what_cannot_be_on_the_meta_device_is_explained(reading: str) -> None:
    def make() -> Callable[[], object]:
        model = nn.Linear(4, 2)
        if reading == "fused":
            torch.optim.AdamW(model.parameters(), fused=True)
        return lambda: model(torch.ones(3, 4, device="meta")).sum().item()

    with pytest.raises(RuntimeError, match=r'(?s)meta device, .*fused=True .*device="cpu"'):
        count_flops(make)


def test_settings_are_as_before_even_after_an_error() -> None:
    def settings_of_torch() -> list[Any]:
        return [
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled,
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.empty(0).device,
        ]

    def make() -> Callable[[], object]:
        def step() -> None:
            inside.append(settings_of_torch())
            raise ZeroDivisionError

        return step

    inside: list[list[Any]] = []
    before = settings_of_torch()
    with pytest.raises(ZeroDivisionError):
        count_flops(make)
    assert settings_of_torch() == before
    assert inside[0][:5] == [False] * 5
