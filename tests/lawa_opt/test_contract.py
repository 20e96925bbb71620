"""LAWA is an optimizer like any other: what torch and other packages expect of one."""

from __future__ import annotations

import copy
import inspect
import pickle
import shutil
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from lawa_opt import LAWA
from tests.support.small_training import (
    BUILT_IN,
    DENSE,
    NEEDS_CLOSURE,
    loss_of,
    make,
    same,
    small_model,
    train,
    weights_of,
)

VARIANTS = [
    pytest.param(kind, options, id=f"{kind.__name__}-{'-'.join(options) or 'default'}")
    for kind in DENSE
    for options in ({}, *({flag: True} for flag in ("foreach", "fused", "capturable", "maximize")))
    if all(flag in inspect.signature(kind).parameters for flag in options)
]


def test_all_but_the_sparse_optimizer_are_tried() -> None:
    assert len(BUILT_IN) >= 14
    assert {kind.__name__ for kind in set(BUILT_IN) - set(DENSE)} == {"SparseAdam"}
    assert [kind.__name__ for kind in NEEDS_CLOSURE] == ["LBFGS"]


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_every_built_in_optimizer_trains_as_without(
    kind: type[Optimizer], options: dict[str, Any]
) -> None:
    plain, wrapped = small_model(), small_model()
    closure = kind in NEEDS_CLOSURE
    alone = make(kind, plain, **options)
    try:
        train(plain, alone, 9, closure=closure)
    except (RuntimeError, AssertionError) as error:
        pytest.skip(f"{kind.__name__}({options}) does not run on the CPU: {error}")
    opt = LAWA(make(kind, wrapped, **options), k=3, every=2)
    assert isinstance(opt, Optimizer)
    train(wrapped, opt, 5, closure=closure)
    snapshot = weights_of(wrapped)
    with opt.averaged():
        assert not all(map(torch.equal, snapshot, weights_of(wrapped)))
    train(wrapped, opt, range(5, 9), closure=closure)
    assert opt.num_snapshots == 3
    assert same(plain.state_dict(), wrapped.state_dict())
    assert same(alone.state_dict(), opt.base.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike_and_apart(kind: type[Optimizer], copied: Any) -> None:
    model = small_model()
    closure = kind in NEEDS_CLOSURE
    if not hasattr(copied(make(kind, model)), "_params") and closure:
        pytest.skip(f"torch's own copies of {kind.__name__} cannot step")
    opt = LAWA(make(kind, model), k=3, every=2)
    train(model, opt, 5, closure=closure)
    twin, twin_opt = copied((model, opt))
    before = opt.averaged_state_dict(model)
    assert same(before, twin_opt.averaged_state_dict(twin))
    train(twin, twin_opt, range(5, 9), closure=closure)
    assert same(before, opt.averaged_state_dict(model))
    assert (opt.schedule.steps, twin_opt.schedule.steps) == (5, 9)
    train(model, opt, range(5, 9), closure=closure)
    assert same(opt.averaged_state_dict(model), twin_opt.averaged_state_dict(twin))
    assert same(model.state_dict(), twin.state_dict())


def test_a_pickle_holds_each_snapshot_once() -> None:
    weights = [nn.Parameter(torch.ones(1000)) for _ in range(20)]
    opt = LAWA(torch.optim.SGD(weights), k=3, every="manual")
    opt.collect()
    size = 4 * 20 * 1000
    assert (3 + 1) * size < len(pickle.dumps(opt)) < (3 + 2) * size


def warm_up(opt: Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LinearLR(opt, total_iters=3)


SCHEDULERS: dict[str, Any] = {
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [warm_up(opt), lr_scheduler.ExponentialLR(opt, 0.9)], optimizer=opt
    ),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, total_iters=3),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.001, 0.1, step_size_up=3),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "LinearLR": warm_up,
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5]),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.9),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=8),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [warm_up(opt), lr_scheduler.ExponentialLR(opt, 0.9)], milestones=[3]
    ),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2),
    "SWALR": lambda opt: torch.optim.swa_utils.SWALR(opt, swa_lr=0.05, anneal_epochs=4),
}


def test_no_scheduler_of_torch_is_left_out() -> None:
    found = {
        name
        for module in (lr_scheduler, torch.optim.swa_utils)
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, lr_scheduler.LRScheduler)
        and value is not lr_scheduler.LRScheduler
        and not name.startswith("_")
    }
    assert found <= set(SCHEDULERS)


# torch 2.6 calls its own SequentialLR's part in the old way.
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_drives_the_wrapped_optimizer(name: str) -> None:
    rates, models = [], [small_model(), small_model()]
    for model, wrap in zip(models, (lambda base: base, LAWA), strict=True):
        opt = wrap(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
        scheduler = SCHEDULERS[name](opt)
        history = []
        for step in range(9):
            train(model, opt, range(step, step + 1))
            if name == "ReduceLROnPlateau":
                scheduler.step(1.0)
            else:
                scheduler.step()
            group = getattr(opt, "base", opt).param_groups[0]
            history.append((group["lr"], group["momentum"]))
        rates.append(history)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    assert same(models[0].state_dict(), models[1].state_dict())


def test_a_scheduler_called_too_early_warns_as_without() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.01))
    scheduler = lr_scheduler.StepLR(opt, 2)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before"):
        scheduler.step()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_the_scaler_is_no_step(fused: bool) -> None:
    plain, scaled = small_model(), small_model()
    train(plain, torch.optim.AdamW(plain.parameters(), fused=fused), 4)
    opt = LAWA(torch.optim.AdamW(scaled.parameters(), fused=fused), k=9, every=1)
    # The largest power of two that float32 holds, so that the first losses overflow.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    skipped = taken = 0
    while taken < 4:
        before = weights_of(scaled)
        opt.zero_grad()
        scaler.scale(loss_of(scaled, taken) * 2**10).backward()
        for parameter in scaled.parameters():
            parameter.grad /= 2**10
        scale = scaler.get_scale()
        scaler.step(opt)
        scaler.update()
        if scaler.get_scale() == scale:
            taken += 1
        else:
            skipped += 1
            assert all(map(torch.equal, before, weights_of(scaled)))
        assert (opt.num_snapshots, opt.schedule.steps) == (taken, taken)
    assert skipped > 0
    assert same(plain.state_dict(), scaled.state_dict())


def test_groups_state_and_defaults_are_those_of_the_wrapped_optimizer() -> None:
    model = small_model()
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    opt = LAWA(base, every=1)
    train(model, opt, 1)
    before = [opt.param_groups, opt.state]
    base.load_state_dict(copy.deepcopy(base.state_dict()))  # binds new groups and state
    assert opt.param_groups is not before[0]
    assert opt.state is not before[1]
    assert opt.param_groups is base.param_groups
    assert opt.state is base.state
    assert opt.defaults is base.defaults
    opt.param_groups[0]["lr"] = 0.5
    assert base.param_groups[0]["lr"] == 0.5
    for name in ("param_groups", "state", "defaults"):
        other = copy.copy(getattr(base, name))
        setattr(opt, name, other)
        assert getattr(base, name) is other
    assert set(vars(opt)) & {"param_groups", "state", "defaults"} == set()
    assert not any("lawa" in str(key) for entry in base.state.values() for key in entry)


def test_what_is_no_optimizer_is_refused() -> None:
    model = small_model()
    with pytest.raises(TypeError, match=r"LAWA wraps an optimizer, such as .*got generator"):
        LAWA(model.parameters())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"LAWA already: read a shorter window by averaged\(k=j\)"):
        LAWA(LAWA(torch.optim.SGD(model.parameters())))
    for k in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"k must be a whole number of snapshots from 1: {k}"):
            LAWA(torch.optim.SGD(model.parameters()), k=k)  # type: ignore[arg-type]


def test_its_text_names_both() -> None:
    text = repr(LAWA(torch.optim.SGD(small_model().parameters()), k=4, every=7))
    assert text.startswith("LAWA(k=4, every=7, num_snapshots=0) of SGD (")


def test_arguments_closures_and_results_pass_through() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.01), every=1)
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        return 7.0

    assert opt.step(closure) == 7.0
    assert opt.step(closure=closure) == 7.0
    assert opt.step() is None
    assert calls == [True, True]
    assert opt.num_snapshots == 3

    def failing() -> float:
        raise KeyError("no data")

    with pytest.raises(KeyError, match="no data"):
        opt.step(failing)
    assert (opt.num_snapshots, opt.schedule.steps) == (3, 3)


def test_zero_grad_reaches_the_wrapped_optimizer() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters()))
    loss_of(model, 0).backward()
    opt.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in model.parameters())
    opt.zero_grad()
    assert all(p.grad is None for p in model.parameters())


class NoArgument(torch.optim.SGD):
    """As apex's FusedAdam."""

    def zero_grad(self) -> None:  # type: ignore[override]
        super().zero_grad(set_to_none=False)


class ZeroByDefault(torch.optim.SGD):
    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none)


@pytest.mark.parametrize("kind", [NoArgument, ZeroByDefault])
def test_zero_grad_has_the_defaults_of_the_wrapped_optimizer(kind: type[Optimizer]) -> None:
    model = small_model()
    opt = LAWA(kind(model.parameters(), lr=0.1))
    loss_of(model, 0).backward()
    opt.zero_grad()
    assert all((p.grad == 0).all() for p in model.parameters())


def test_step_hooks_fire_once_and_can_change_the_arguments() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.01), every=1)
    seen: list[tuple[str, int, Any]] = []

    def before(optimizer: Any, args: Any, kwargs: Any) -> Any:
        seen.append(("pre", optimizer.num_snapshots, args[1:]))
        return (args[0], lambda: 3.0), kwargs

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        seen.append(("post", optimizer.num_snapshots, None))

    handles = [opt.register_step_pre_hook(before), opt.register_step_post_hook(after)]
    assert opt.step() == 3.0
    assert seen == [("pre", 0, ()), ("post", 1, None)]
    for handle in handles:
        handle.remove()
    opt.step()
    assert len(seen) == 2
    opt.register_step_pre_hook(lambda optimizer, args, kwargs: (1, 2, 3))
    with pytest.raises(RuntimeError, match=r"pre-hook must return None or a tuple.*\(1, 2, 3\)"):
        opt.step()


def test_hooks_of_the_wrapped_optimizer_and_global_ones_fire_once() -> None:
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.01)
    seen: list[str] = []
    handles = [
        base.register_step_post_hook(lambda *_: seen.append("base")),
        register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
    ]
    try:
        opt = LAWA(base, every=1)
        opt._patch_step_function()  # as torch does to optimizers that call its __init__
        opt.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["global pre", "base", "global post"]


@pytest.mark.parametrize("own", [False, True], ids=["global", "global and own"])
def test_all_step_hooks_see_the_wrapper_and_the_snapshot_as_torchs_would(own: bool) -> None:
    def calls(optimizer: Optimizer) -> list[Any]:
        seen: list[Any] = []

        def note(name: str) -> Any:
            def hook(called: Any, args: Any, kwargs: Any) -> Any:
                held = getattr(called, "num_snapshots", None)
                seen.append((name, called is optimizer, held, args[1:], dict(kwargs)))
                if name.endswith("pre"):
                    return (called, *args[1:]), {**kwargs, "closure": closures[name]}
                return None

            return hook

        def closure_of(name: str) -> Any:
            return lambda: seen.append(f"closure of {name}")

        closures = {name: closure_of(name) for name in ("global pre", "own pre")}
        handles = [
            register_optimizer_step_pre_hook(note("global pre")),
            register_optimizer_step_post_hook(note("global post")),
        ]
        if own:
            handles += [
                optimizer.register_step_pre_hook(note("own pre")),
                optimizer.register_step_post_hook(note("own post")),
            ]
        try:
            optimizer.step()
        finally:
            for handle in handles:
                handle.remove()
        return [
            item if isinstance(item, str) else (*item[:2], item[3], [*item[4]]) for item in seen
        ] + [item[2] for item in seen if not isinstance(item, str)]

    plain = torch.optim.SGD(small_model().parameters(), lr=0.1)
    opt = LAWA(torch.optim.SGD(small_model().parameters(), lr=0.1), k=2, every=1)
    count = 4 if own else 2
    expected, found = calls(plain), calls(opt)
    assert found[:-count] == expected[:-count]
    assert found[-count:] == [0] * (count // 2) + [1] * (count // 2), "after the collect"


def test_global_hooks_fire_once_also_where_a_scheduler_has_the_wrapped_optimizer() -> None:
    base = torch.optim.SGD(small_model().parameters(), lr=0.1)
    torch.optim.lr_scheduler.ConstantLR(base)
    opt = LAWA(base, every=1)
    seen: list[str] = []
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("global post"))
    try:
        opt.step()
    finally:
        handle.remove()
    assert seen == ["global post"]


def test_its_text_names_the_class_it_is_of() -> None:
    class Mine(LAWA):
        pass

    assert repr(Mine(torch.optim.SGD(small_model().parameters()))).startswith("Mine(k=5")


# torch 2.11 says so of every profile.
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
def test_the_profiler_sees_one_step() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.01))
    loss_of(model, 0).backward()
    with torch.profiler.profile() as profile:
        opt.step()
    names = [event.name for event in profile.events() if event.name.startswith("Optimizer.step#")]
    assert names == ["Optimizer.step#SGD.step"]


def test_state_dict_hooks() -> None:
    model = small_model()
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.01), every=1)
    train(model, opt, 1)
    seen: list[str] = []
    opt.register_state_dict_pre_hook(lambda optimizer: seen.append("pre"))
    opt.register_state_dict_post_hook(lambda optimizer, state: {**state, "note": 1})
    opt.register_load_state_dict_pre_hook(
        lambda optimizer, state: {key: value for key, value in state.items() if key != "note"}
    )
    opt.register_load_state_dict_post_hook(lambda optimizer: seen.append("loaded"))
    state_dict = opt.state_dict()
    assert state_dict["note"] == 1
    opt.load_state_dict(state_dict)
    assert "note" in state_dict
    assert seen == ["pre", "loaded"]


def test_groups_added_in_mid_training_have_a_window_of_their_own() -> None:
    old, new = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    opt = LAWA(torch.optim.SGD([old], lr=1.0), k=2, every=1)

    def step() -> None:
        for group in opt.param_groups:
            for parameter in group["params"]:
                parameter.grad = -torch.ones_like(parameter)
        opt.step()

    for _ in range(3):
        step()
    opt.add_param_group({"params": [new]})
    step()
    assert len(opt.base.param_groups) == 2
    with opt.averaged():
        assert (old.tolist(), new.tolist()) == ([3.5] * 3, [1.0] * 2)
    step()
    with opt.averaged():
        assert (old.tolist(), new.tolist()) == ([4.5] * 3, [1.5] * 2)
    with opt.averaged(k=1):
        assert (old.tolist(), new.tolist()) == ([5.0] * 3, [2.0] * 2)


def test_an_optimizer_that_steps_a_group_at_a_time() -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    opt = LAWA(torch.optim.SGD([{"params": [one]}, {"params": [other]}], lr=1.0), k=2, every=1)
    opt.collect()
    groups = opt.param_groups
    for _ in range(3):
        for group in groups:
            opt.param_groups = [group]
            for parameter in group["params"]:
                parameter.grad = -torch.ones_like(parameter)
            opt.step()
    opt.param_groups = groups
    assert opt.num_snapshots == 2
    with opt.averaged():
        assert (one.tolist(), other.tolist()) == ([2.5] * 2, [2.5] * 3)


def test_collecting_a_part_leaves_the_snapshots_of_the_rest() -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    opt = LAWA(torch.optim.SGD([{"params": [one]}, {"params": [other]}]), k=2, every="manual")
    for value in (1.0, 2.0, 3.0):
        for parameter in (one, other):
            parameter.data.fill_(value)
        opt.collect()
    groups = opt.param_groups
    opt.param_groups = groups[:1]
    one.data.fill_(10.0)
    opt.collect()
    opt.param_groups = groups
    with opt.averaged():
        assert (one.tolist(), other.tolist()) == ([6.5] * 2, [2.5] * 3)
    with opt.averaged(k=1):
        assert (one.tolist(), other.tolist()) == ([10.0] * 2, [3.0] * 3)


def test_parameters_frozen_and_thawed() -> None:
    models = [small_model(), small_model()]
    wrapped = LAWA(torch.optim.AdamW(models[1].parameters()), k=3, every=1)
    for model, opt in zip(
        models, (torch.optim.AdamW(models[0].parameters()), wrapped), strict=True
    ):
        for frozen, steps in ((False, range(2)), (True, range(2, 6)), (False, range(6, 8))):
            model[0].weight.requires_grad_(not frozen)
            model[0].weight.grad = None
            train(model, opt, steps)
            if opt is wrapped and frozen:
                before = models[1][0].weight.detach().clone()
                with opt.averaged():
                    assert torch.equal(models[1][0].weight, before)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_tied_weights_and_empty_groups() -> None:
    model = small_model()
    model.append(nn.Linear(4, 8))
    model[3].weight = model[0].weight
    groups = [
        {"params": []},
        {"params": model.parameters()},
        {"params": [], "lr": 0.5},
    ]
    opt = LAWA(torch.optim.SGD(groups, lr=0.01), k=3, every=1)
    opt.step()
    state_dict = opt.state_dict()
    opt.load_state_dict(state_dict)
    with opt.averaged():
        assert model[3].weight is model[0].weight
    nothing = LAWA(torch.optim.SGD([{"params": []}]), every=1)
    nothing.step()
    nothing.load_state_dict(nothing.state_dict())
    assert nothing.num_snapshots == 0


def test_a_parameter_listed_twice_is_collected_once() -> None:
    weight = nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        base = torch.optim.SGD([weight, weight], lr=1.0)
    opt = LAWA(base, k=2, every=1)
    for _ in range(2):
        weight.grad = torch.ones(2)
        opt.step()
    opt.load_state_dict(opt.state_dict())
    with opt.averaged():
        assert weight.tolist() == [-2.0, -2.0]


def test_making_state_for_a_checkpoint_is_no_step() -> None:
    """torch.distributed.checkpoint calls step(closure=None) with rates and gradients of zero."""
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        model = small_model()
        opt = LAWA(kind(model.parameters(), lr=0.01), every=1)
        get_optimizer_state_dict(model, opt)
        assert (opt.schedule.steps, opt.num_snapshots) == (0, 0)
    # An SGD without momentum never has a state, so that it is done in mid-training too.
    train(model, opt, 3)
    opt.zero_grad()
    get_optimizer_state_dict(model, opt)
    assert (opt.schedule.steps, opt.num_snapshots) == (3, 3)


def test_a_warm_up_from_a_rate_of_zero_is_a_step() -> None:
    model = small_model()
    opt = LAWA(torch.optim.AdamW(model.parameters(), lr=0.0), every=1)
    loss_of(model, 0).backward()
    opt.step(closure=None)
    assert (opt.schedule.steps, opt.num_snapshots) == (1, 1)


def compiled_step(model: nn.Module, opt: Optimizer, backend: str) -> Any:
    def step(batch: torch.Tensor) -> None:
        opt.zero_grad()
        model(batch).square().mean().backward()
        opt.step()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch.compile(step, backend=backend)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_the_training_step_adds_few_frames_that_are_never_compiled_again() -> None:
    models, frames = [small_model(), small_model()], []
    bases = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in models]
    opt = LAWA(bases[1], k=3, every=2)
    for model, optimizer in zip(models, (bases[0], opt), strict=True):
        step = compiled_step(model, optimizer, "aot_eager")
        for steps in (3, 20):
            for _ in range(steps):
                step(torch.ones(3, 4))
            frames.append(torch._dynamo.utils.counters["frames"]["ok"])
    plain, plain_later, ours, ours_later = frames
    assert (plain, ours) == (plain_later, ours_later)
    # Three in torch 2.13, none in 2.6; 2.11 compiles some of torch's own once in a process.
    assert ours <= plain + 3
    assert (opt.schedule.steps, opt.num_snapshots) == (23, 3)
    assert same(models[0].state_dict(), models[1].state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    # Of inductor in torch 2.6, on settings of its own.
    "ignore:Skipping serialization of:UserWarning",
)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: no g++")
def test_a_training_step_compiled_to_machine_code() -> None:
    plain, wrapped = nn.Linear(4, 1), nn.Linear(4, 1)
    wrapped.load_state_dict(plain.state_dict())
    alone = torch.optim.SGD(plain.parameters(), lr=0.01)
    opt = LAWA(torch.optim.SGD(wrapped.parameters(), lr=0.01), k=3, every=2)
    step = compiled_step(wrapped, opt, "inductor")
    for _ in range(6):
        alone.zero_grad()
        plain(torch.ones(3, 4)).square().mean().backward()
        alone.step()
        step(torch.ones(3, 4))
    assert opt.num_snapshots == 3
    torch.testing.assert_close(plain.state_dict(), wrapped.state_dict())


def schedule_free(model: nn.Module) -> Any:
    package = pytest.importorskip("schedulefree", reason="needs schedulefree: pip install it")
    return package.AdamWScheduleFree(model.parameters(), lr=0.01, warmup_steps=2)


def schedule_free_wrapper(model: nn.Module) -> Any:
    package = pytest.importorskip("schedulefree", reason="needs schedulefree: pip install it")
    return package.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.01))


def lookahead(model: nn.Module) -> Any:
    reason = "needs pytorch_optimizer: pip install it"
    package = pytest.importorskip("pytorch_optimizer", reason=reason)
    return package.Lookahead(torch.optim.AdamW(model.parameters(), lr=0.01), k=3)


def lion(model: nn.Module) -> Any:
    reason = "needs pytorch_optimizer: pip install it"
    package = pytest.importorskip("pytorch_optimizer", reason=reason)
    return package.Lion(model.parameters(), lr=0.01)


def yogi(model: nn.Module) -> Any:
    package = pytest.importorskip("torch_optimizer", reason="needs torch_optimizer: pip install it")
    return package.Yogi(model.parameters(), lr=0.01)


@pytest.mark.parametrize("other", [schedule_free, schedule_free_wrapper, lookahead, lion, yogi])
def test_optimizers_and_wrappers_of_other_packages(other: Any) -> None:
    plain, wrapped, resumed = small_model(), small_model(), small_model()
    alone, opt = other(plain), LAWA(other(wrapped), k=3, every=2)
    for optimizer in (alone, opt):
        getattr(optimizer, "train", lambda: None)()
    train(plain, alone, 9)
    train(wrapped, opt, 5)
    with opt.averaged():
        pass
    resumed.load_state_dict(wrapped.state_dict())
    again = LAWA(other(resumed), k=3, every=2)
    again.train()
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    for model, optimizer in ((wrapped, opt), (resumed, again)):
        train(model, optimizer, range(5, 9))
        assert same(plain.state_dict(), model.state_dict())
    assert opt.num_snapshots == again.num_snapshots == 3
    assert same(opt.averaged_state_dict(wrapped), again.averaged_state_dict(resumed))


def test_eval_and_train_reach_an_optimizer_that_has_them() -> None:
    model = small_model()
    base = schedule_free(model)
    opt = LAWA(base, k=2, every=1)
    opt.train()
    train(model, opt, 3)
    live = weights_of(model)
    opt.eval()
    assert not base.param_groups[0]["train_mode"]
    opt.train()
    assert base.param_groups[0]["train_mode"]
    for before, after in zip(live, weights_of(model), strict=True):
        torch.testing.assert_close(before, after)
    train(model, opt, range(3, 4))
