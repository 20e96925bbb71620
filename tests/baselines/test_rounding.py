"""Rounded weights against a slow twin, and all that is refused or left alone."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from baselines.training.rounding import (
    check,
    chosen,
    parse,
    parse_readings,
    round_values,
    rounded,
    what_is_rounded,
)
from baselines.workloads import digits, text


def twin(rows: list[list[float]], bits: int, group: int | None) -> list[list[float]]:
    """The definition, a value at a time in float64."""
    found = []
    for row in rows:
        length = group or len(row)
        new = []
        for begin in range(0, len(row), length):
            values = row[begin : begin + length]
            scale = max(abs(value) for value in values) / (2 ** (bits - 1) - 1)
            new += [round(value / scale) * scale if scale else 0.0 for value in values]
        found.append(new)
    return found


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int, int | None]:
    """A weight of two to four dimensions, bits, and a group that may divide its rows or not."""
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    wide = draw(st.booleans())
    values = st.floats(-1e6, 1e6, width=64 if wide else 32, allow_subnormal=False)
    count = math.prod(shape)
    flat = draw(st.lists(values, min_size=count, max_size=count))
    weight = torch.tensor(flat, dtype=torch.float64 if wide else torch.float32).view(shape)
    return weight, draw(st.integers(2, 16)), draw(st.none() | st.integers(1, 40))


@pytest.mark.slow
@given(weights())
def test_rounding_is_what_the_definition_says(case: tuple[Tensor, int, int | None]) -> None:
    weight, bits, group = case
    found = round_values(weight, bits, group)
    assert found.dtype == weight.dtype
    expected = torch.tensor(
        twin(weight.double().flatten(1).tolist(), bits, group), dtype=torch.float64
    )
    assert torch.equal(found, expected.to(weight.dtype).view(weight.shape))


@pytest.mark.slow
@given(weights())
def test_the_error_is_half_a_scale_and_rounding_again_changes_nothing(
    case: tuple[Tensor, int, int | None],
) -> None:
    weight, bits, group = case
    found = round_values(weight, bits, group)
    rows = weight.double().flatten(1)
    length = min(group or rows.shape[1], rows.shape[1])
    for begin in range(0, rows.shape[1], length):
        part = rows[:, begin : begin + length]
        scale = part.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        off = (found.double().flatten(1)[:, begin : begin + length] - part).abs()
        # What float32 cannot hold of a rounded value is beside it.
        assert (off <= scale / 2 + part.abs() * torch.finfo(weight.dtype).eps).all()
    if weight.dtype == torch.float32:
        assert torch.equal(round_values(found, bits, group), found)


def test_two_bits_are_three_values_and_ties_go_to_even() -> None:
    weight = torch.tensor([[-1.0, -0.5, 0.4, 0.6], [7.0, 2.5, 3.5, -0.5]])
    assert round_values(weight, 2)[0].tolist() == [-1.0, 0.0, 0.0, 1.0]
    assert round_values(weight, 4)[1].tolist() == [7.0, 2.0, 4.0, 0.0]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["int4", "int4g2"])
def test_a_weight_that_is_not_finite_is_read_as_not_finite(bad: float, name: str) -> None:
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight[1, 3] = bad
    rounding = parse(name)
    found = rounded(model, rounding)
    assert not found(torch.ones(4)).isfinite().all()
    assert found.weight[0].isfinite().all()
    assert not math.isfinite(what_is_rounded(model, rounding).relative_error)


class Tied(nn.Module):
    """A language model whose head is its embedding; the body is the one matrix between."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.tokens(tokens))))


def test_a_copy_is_rounded_and_the_model_and_torchs_generator_are_left() -> None:
    model = Tied().train()
    model.body.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    made = rounded(model, parse("int3"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert (made.training, made.body.training) == (True, False)
    assert made.head.weight is made.tokens.weight
    for name, value in made.named_parameters():
        is_same = torch.equal(value, before[name])
        assert is_same == (value.dim() == 1), name
        if value.dim() > 1:
            assert torch.equal(value, round_values(before[name], 3))


def test_the_body_is_all_but_embeddings_what_is_tied_to_them_and_the_head() -> None:
    assert list(chosen(Tied(), parse("int4"))) == ["tokens.weight", "body.weight"]
    assert list(chosen(Tied(), parse("int4-body"))) == ["body.weight"]
    untied = text.Transformer()
    left = set(chosen(untied, parse("int4"))) - set(chosen(untied, parse("int4-body")))
    assert left == {"tokens.weight", "positions.weight", "head.weight"}


def test_what_is_rounded_is_counted_and_said_in_a_line() -> None:
    model = Tied()
    found = what_is_rounded(model, parse("int4g3-body"))
    assert (found.parameters, found.values) == ((1, 5), (16, 24 + 16 + 4 + 4 + 4))
    # Each of four rows of four has a group of three and one of one.
    assert found.short_rows == 4
    assert found.bits_per_weight == 4 + 16 * 8 / 16
    weight = model.body.weight.detach().double()
    off = weight - torch.tensor(twin(weight.tolist(), 4, 3), dtype=torch.float64)
    assert found.relative_error == pytest.approx(float(off.norm() / weight.norm()), rel=1e-5)
    assert str(found) == (
        "int4g3-body: 1 of 5 parameters rounded, 16 of 52 values, 12 bits each with 16 for a "
        "scale; in 4 rows the last group is shorter; left as they are: tokens.weight"
    )
    assert str(what_is_rounded(model, parse("int8"))).endswith("12 bits each with 16 for a scale")
    for group, is_said in ((3, False), (4, True), (9, True)):
        said = str(what_is_rounded(model, parse(f"int4g{group}")))
        assert said.endswith("; no row is longer than a group, so a scale a row") == is_said
    with torch.no_grad():
        model.body.weight.zero_()
    assert what_is_rounded(model, parse("int4-body")).relative_error == 0


def test_convolutions_are_rounded_a_filter_at_a_time() -> None:
    model = digits.make_model()
    names = list(chosen(model, parse("int4")))
    assert names == ["0.weight", "4.weight", "8.weight"]
    filters = model[4].weight.detach()
    found = rounded(model, parse("int4"))[4].weight
    for one, of in zip(found, filters, strict=True):
        assert torch.equal(one, round_values(of.reshape(1, -1), 4).view_as(of))


@pytest.mark.parametrize(
    ("name", "bits", "group", "library", "body"),
    [
        ("int8", 8, None, "", False),
        (" int04 ", 4, None, "", False),
        ("int3g32", 3, 32, "", False),
        ("int4g128-body", 4, 128, "", True),
        ("torchao:int8", 8, None, "torchao", False),
        ("torchao:int4g32", 4, 32, "torchao", False),
    ],
)
def test_names_are_read(name: str, bits: int, group: int | None, library: str, body: bool) -> None:
    found = parse(name)
    assert (found.bits, found.group) == (bits, group)
    assert (found.library, found.body) == (library, body)
    assert parse(found.name) == found
    assert found.name == name.strip().replace("04", "4")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int1", "'int1' cannot be read: give 2 to 16 bits"),
        ("int17", "give 2 to 16 bits"),
        ("torchao:int9", "give 2 to 8 bits of torchao"),
        ("int4g0", "a group has at least 1 value, such as in int4g32"),
        ("fp8", "'fp8' is no reading of weights: give float, intN of 2 to 16 bits"),
        ("int4g-1", "is no reading of weights"),
        ("float", "is no reading of weights"),
        ("gptq:int4", "is no reading of weights"),
        ("", "is no reading of weights"),
        ("int4" * 1000, "is no reading of weights"),
        ("int٤", "is no reading of weights"),
    ],
)
def test_other_names_are_refused_in_a_line(name: str, said: str) -> None:
    with pytest.raises(ValueError, match="read") as refused:
        parse(name)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_list_of_readings_begins_with_float_and_has_none_twice() -> None:
    assert parse_readings("float,int8, int4g32") == ("float", "int8", "int4g32")
    assert parse_readings("int4") == ("float", "int4")
    for twice in ("int4,int04", "float,int4,float"):
        with pytest.raises(ValueError, match="twice: give each reading once"):
            parse_readings(twice)
    with pytest.raises(ValueError, match="'' is no reading"):
        parse_readings("int4,")


class Strange(nn.Parameter):
    """A kind of parameter that keeps more than its values, or less."""


def without_matrices() -> nn.Module:
    return nn.BatchNorm1d(3)


def of_dtype(dtype: torch.dtype) -> nn.Module:
    return nn.Linear(2, 2, dtype=dtype)


def of_strange_parameters() -> nn.Module:
    model = nn.Linear(2, 2)
    model.weight = Strange(torch.ones(2, 2))
    return model


def hooked_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        # Of torch itself: a newer one is there, and many models have this.
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(2, 2))


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 2))
    for name, amount in (("weight", 0.5), ("weight", 0.25)):
        prune.l1_unstructured(model[0], name, amount)
    return model


def not_to_be_copied() -> nn.Module:
    model = nn.Linear(2, 2)
    model.kept = (model.weight * 2,)
    return model


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        (without_matrices(), "int4", "no parameter of two or more dimensions to round"),
        (nn.Linear(2, 2), "int4-body", "two or more dimensions besides what it leaves to round"),
        (of_dtype(torch.bfloat16), "int4", "weight is bfloat16"),
        (of_dtype(torch.float16), "int8", "weight is float16"),
        (of_dtype(torch.complex64), "int8", "weight is complex64"),
        (of_dtype(torch.complex64), "int8", "from float32 or float64: read float alone"),
        (weight_norm(nn.Linear(2, 2)), "int4", "the model are computed from other parameters"),
        (hooked_weight_norm(), "int4", "computed from other parameters"),
        (hooked_weight_norm(), "int4", "torch.nn.utils.remove_weight_norm makes them plain"),
        (spectral_norm(nn.Linear(2, 2)), "int4", "utils.remove_spectral_norm makes them plain"),
        (pruned(), "int4", "weights of 0 are computed from other parameters"),
        (pruned(), "int4", "torch.nn.utils.prune.remove makes them plain"),
        (of_strange_parameters(), "int4", "weight is of Strange"),
        (nn.LazyLinear(2), "int4", "weight is of UninitializedParameter"),
        (not_to_be_copied(), "int4", "copy.deepcopy cannot copy the model"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_models_that_cannot_be_rounded_are_refused_in_a_line(
    model: nn.Module, name: str, said: str
) -> None:
    with pytest.raises(ValueError, match="cannot be read") as refused:
        check(model, parse(name))
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"{name} cannot be read: ")
    assert "\n" not in str(refused.value)
