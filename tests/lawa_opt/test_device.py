"""A window on another device than the parameters."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lawa_opt import LAWA
from tests.support.small_training import same, small_model, train

needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

# torch holds "cpu:0" for another device than "cpu", so that a window there is collected and read
# through the same staging as one in host memory for parameters on a GPU.
ELSEWHERE = "cpu:0"


def trained(device: str | None, dtype: torch.dtype | None = None) -> tuple[nn.Module, LAWA]:
    model = small_model()
    base = torch.optim.AdamW(model.parameters(), lr=0.05)
    opt = LAWA(base, k=3, every=2, device=device, dtype=dtype)
    train(model, opt, 9)
    return model, opt


def is_offloaded(opt: LAWA) -> bool:
    return all(ring.storage.is_offloaded for ring in opt.window.rings)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
def test_a_window_elsewhere_reads_as_one_beside_the_parameters(dtype: torch.dtype | None) -> None:
    model, opt = trained(None, dtype)
    other, elsewhere = trained(ELSEWHERE, dtype)
    assert is_offloaded(elsewhere)
    assert same(model.state_dict(), other.state_dict())
    for latest in (None, 1, 2):
        want = opt.averaged_state_dict(model, latest)
        assert same(want, elsewhere.averaged_state_dict(other, latest))


def test_a_window_elsewhere_is_saved_loaded_and_copied() -> None:
    model, opt = trained(ELSEWHERE)
    loaded, into = trained(ELSEWHERE)
    into.load_state_dict(copy.deepcopy(opt.state_dict()))
    copies = [copy.deepcopy((model, opt)), pickle.loads(pickle.dumps((model, opt)))]
    train(model, opt, range(9, 14))
    for twin, again in [*copies, (loaded, into)]:
        train(twin, again, range(9, 14))
        assert same(opt.averaged_state_dict(model), again.averaged_state_dict(twin))


def test_a_group_added_to_a_window_elsewhere() -> None:
    _, opt = trained(ELSEWHERE)
    weight = nn.Parameter(torch.ones(3))
    opt.add_param_group({"params": [weight]})
    opt.collect()
    opt.param_groups.pop(0)
    opt.collect()
    assert [ring.num_snapshots for ring in opt.window.rings] == [3, 2]
    assert is_offloaded(opt)


def test_for_parameters_on_the_cpu_host_memory_is_the_default() -> None:
    _, opt = trained("cpu")
    assert not is_offloaded(opt)


def test_memory_of_a_window_elsewhere_is_one_more_copy_beside_the_parameters() -> None:
    model = nn.Linear(256, 256)
    opt = LAWA(torch.optim.SGD(model.parameters()), k=4, device=ELSEWHERE, dtype=torch.bfloat16)
    opt.collect()
    [ring] = opt.window.rings
    assert ring.storage.staging.nbytes == 2 * (256 * 256 + 256)
    assert opt.window.nbytes == 4 * ring.storage.staging.nbytes


def on_cuda(device: str | None) -> tuple[nn.Module, LAWA, list[list[torch.Tensor]]]:
    model = nn.Linear(2048, 2048, device="cuda")
    opt = LAWA(torch.optim.SGD(model.parameters()), k=3, every="manual", device=device)
    history = []
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
            opt.collect()
            # The next update follows at once, while the snapshot may be on its way.
            for parameter in model.parameters():
                parameter.mul_(-7)
        history.append([torch.full_like(parameter, step) for parameter in model.parameters()])
    return model, opt, history


@pytest.mark.gpu
@pytest.mark.parametrize("device", [None, "cpu"])
def test_cuda_parameters(device: str | None) -> None:
    model, opt, _ = on_cuda(device)
    [ring] = opt.window.rings
    if device == "cpu":
        assert ring.storage.rows.is_pinned()
        assert ring.storage.stream is not None
    live = [parameter.detach().clone() for parameter in model.parameters()]
    with opt.averaged():
        assert all((parameter == 3).all() for parameter in model.parameters())
    assert all(map(torch.equal, live, model.parameters()))
    state_dict = copy.deepcopy(opt.state_dict())
    assert [state_dict["state"][0][f"lawa_{i}"].max().item() for i in range(3)] == [2, 3, 4]
    for again in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        weight = again.param_groups[0]["params"][0]
        with again.averaged(k=1):
            assert (weight == 4).all()


@pytest.mark.gpu
def test_a_window_moves_between_devices_through_a_state_dict() -> None:
    model, opt, _ = on_cuda("cpu")
    twin = nn.Linear(2048, 2048)
    again = LAWA(torch.optim.SGD(twin.parameters()), k=3, every="manual")
    again.load_state_dict(opt.state_dict())
    with again.averaged():
        assert (twin.weight == 3).all()
    opt.load_state_dict(again.state_dict())
    with opt.averaged():
        assert (model.weight == 3).all()


@pytest.mark.gpu
def test_parameters_on_the_cpu_and_on_cuda_at_once() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, device="cuda"))]
    opt = LAWA(torch.optim.SGD(parameters, lr=1.0), k=2, every=1)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = -torch.ones_like(parameter)
        opt.step()
    with opt.averaged():
        assert [parameter.tolist() for parameter in parameters] == [[2.5] * 3] * 2


@pytest.mark.gpu
@needs_two
def test_parameters_on_two_cuda_devices() -> None:
    parameters = [nn.Parameter(torch.zeros(3, device=f"cuda:{i}")) for i in range(2)]
    opt = LAWA(torch.optim.SGD(parameters, lr=1.0), k=2, every=1, device="cpu")
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = -torch.ones_like(parameter)
        opt.step()
    with opt.averaged():
        assert [parameter.tolist() for parameter in parameters] == [[2.5] * 3] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"fused": True}, {"capturable": True}, {"foreach": True}])
def test_variants_on_cuda_train_as_without(options: dict[str, bool]) -> None:
    models = [small_model().cuda(), small_model().cuda()]
    bases = [torch.optim.AdamW(model.parameters(), **options) for model in models]
    for model, opt in zip(models, (bases[0], LAWA(bases[1], k=3, every=1)), strict=True):
        for _ in range(5):
            opt.zero_grad()
            model(torch.ones(4, 4, device="cuda")).square().mean().backward()
            opt.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.gpu
def test_a_step_in_a_cuda_graph_is_refused() -> None:
    model = nn.Linear(4, 4, device="cuda")
    opt = LAWA(torch.optim.AdamW(model.parameters(), capturable=True))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    opt.base.step()
    message = r"step\(\) inside a CUDA graph would count and collect once"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
        opt.step()
