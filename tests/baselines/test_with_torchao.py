"""What torchao rounds, against ours where both do the same and against its own model."""

import copy
import math
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from baselines.training.rounding import (
    check,
    chosen,
    matrices,
    parse,
    round_values,
    rounded,
    what_is_rounded,
)
from baselines.workloads import digits, text

needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is not installed: pip install torchao"
)


def test_without_torchao_its_readings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.training.with_torchao.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lawa-opt\[torchao\]', or read int4"):
        check(text.Transformer(), parse("torchao:int4"))


def where_both_do_the_same(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """torchao's rounding, asked for our range of integers: it has one more below."""
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    most = 2 ** (bits - 1) - 1
    block = (1, group or weight.shape[1])
    scale, zero = choose_qparams_affine(
        weight, MappingType.SYMMETRIC, block, torch.int8, quant_min=-most, quant_max=most
    )
    whole = quantize_affine(weight, block, scale, zero, torch.int8, -most, most)
    return dequantize_affine(whole, block, scale, zero, torch.int8, -most, most)


@needs_torchao
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 32), (3, 32), (3, None)])
def test_torchao_rounds_alike_where_it_is_asked_for_the_same(bits: int, group: int | None) -> None:
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(bits))
    ours, theirs = round_values(weight, bits, group), where_both_do_the_same(weight, bits, group)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=0)


@needs_torchao
@pytest.mark.parametrize("name", ["torchao:int8", "torchao:int4", "torchao:int4g32"])
def test_a_reading_of_torchao_is_what_torchaos_own_model_gives(name: str) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    rounding = parse(name)
    model = text.Transformer().eval()
    check(model, rounding)
    made, theirs = rounded(model, rounding), copy.deepcopy(model)
    granularity = PerGroup(rounding.group) if rounding.group else PerAxis(0)
    dtype = getattr(torch, f"int{rounding.bits}")
    quantize_(theirs, IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity))
    tokens = torch.arange(64)[None]
    assert torch.equal(made(tokens), theirs(tokens))
    assert not torch.equal(made(tokens), model(tokens))
    found = what_is_rounded(model, rounding)
    assert found.left == ("tokens.weight", "positions.weight")
    pairs = [
        (before.weight.double(), after.weight.dequantize().double())
        for before, after in zip(model.modules(), theirs.modules(), strict=True)
        if isinstance(before, nn.Linear)
    ]
    off = sum((after - before).square().sum().item() for before, after in pairs)
    squares = sum(before.square().sum().item() for before, _ in pairs)
    assert found.relative_error == pytest.approx(math.sqrt(off / squares))


@needs_torchao
def test_what_torchao_cannot_round_is_refused_and_what_it_would_untie_is_left() -> None:
    with pytest.raises(ValueError, match=r"torchao's groups must divide a row, and .* read int4g5"):
        check(text.Transformer(), parse("torchao:int4g5"))
    with pytest.raises(ValueError, match="torchao rounds float32 weights, and weight is float64"):
        check(nn.Linear(2, 2).double(), parse("torchao:int8"))
    with pytest.raises(ValueError, match="besides what it leaves"):
        check(digits.make_model()[:4], parse("torchao:int8"))
    tied = text.Transformer()
    tied.head.weight = tied.tokens.weight
    left = matrices(tied).keys() - chosen(tied, parse("torchao:int4")).keys()
    assert left == {"tokens.weight", "positions.weight"}
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    assert not rounded(model, parse("torchao:int4"))(torch.ones(4)).isfinite().all()
