"""LAWA in what trainings on a GPU use: mixed precision, layouts, compilers, graphs, streams.

Where the CPU has the same, it is tried there too. Each mean is held against copies of the weights
that were taken at the collects.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lawa_opt import LAWA

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU]
# Of the window: with the parameters, or in host memory; torch holds "cpu:0" for another device than
# "cpu", which is the same code without a stream.
WINDOWS = [
    ("cpu", None),
    ("cpu", "cpu:0"),
    pytest.param("cuda", None, marks=pytest.mark.gpu),
    pytest.param("cuda", "cpu", marks=pytest.mark.gpu),
]
K, EVERY, STEPS = 3, 2, 9
TIMEOUT_SECONDS = 40

Snapshots = list[list[Tensor]]


@pytest.fixture(autouse=True)
def same_kernels() -> Iterator[None]:
    """Have cuDNN take the same way twice, so that two trainings can be equal to the last bit."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def mlp(device: str, width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, width), nn.Tanh(), nn.Linear(width, 8)).to(device)


def batch(step: int, device: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(*(shape or (16, 32)), generator=generator).to(device)


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, **options)


def copies(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def collected(opt: LAWA, model: nn.Module, step: Callable[[int], object]) -> Snapshots:
    """Train, and return copies of the weights that were collected."""
    snapshots = []
    for number in range(STEPS):
        before = opt.schedule.last_collect
        step(number)
        if opt.schedule.last_collect != before:
            snapshots.append(copies(model))
    return snapshots


def means(snapshots: Snapshots, latest: int = K) -> list[Tensor]:
    """The means of the latest snapshots in float64, a tensor each."""
    return [torch.stack(same).double().mean(0) for same in zip(*snapshots[-latest:], strict=True)]


def check(opt: LAWA, model: nn.Module, snapshots: Snapshots) -> None:
    """Hold what `averaged()` lends against the copies, and what it gives back against the live."""
    assert len(snapshots) == STEPS // EVERY
    assert opt.num_snapshots == K
    live = copies(model)
    for latest in (K, 1):
        with opt.averaged(latest):
            for parameter, mean in zip(model.parameters(), means(snapshots, latest), strict=True):
                torch.testing.assert_close(parameter.double(), mean, rtol=1e-6, atol=1e-7)
    assert all(map(torch.equal, live, model.parameters()))


@pytest.mark.parametrize(("device", "window"), WINDOWS)
def test_autocast_a_grad_scaler_and_fused_adamw(device: str, window: str | None) -> None:
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    models = [mlp(device), mlp(device)]
    bases = [adamw(model, fused=True) for model in models]
    opt = LAWA(bases[1], k=K, every=EVERY, device=window)
    scalers = [torch.amp.GradScaler(device, init_scale=2.0**8) for _ in models]
    skipped = 4

    def step_of(model: nn.Module, optimizer: Any, scaler: Any) -> Callable[[int], None]:
        def step(number: int) -> None:
            optimizer.zero_grad()
            with torch.autocast(device, dtype):
                loss = model(batch(number, device)).float().square().mean()
            if number == skipped:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return step

    plain = step_of(models[0], bases[0], scalers[0])
    for number in range(STEPS):
        plain(number)
    snapshots = collected(opt, models[1], step_of(models[1], opt, scalers[1]))
    # A step that the scaler left out is none.
    assert opt.schedule.steps == STEPS - 1
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    check(opt, models[1], snapshots)


@pytest.mark.parametrize(("device", "window"), WINDOWS)
def test_channels_last(device: str, window: str | None) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
        return nn.Sequential(*layers).to(device, memory_format=torch.channels_last)

    def step_of(model: nn.Module, optimizer: Any) -> Callable[[int], None]:
        def step(number: int) -> None:
            optimizer.zero_grad()
            images = batch(number, device, 4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
            model(images).square().mean().backward()
            optimizer.step()

        return step

    plain, model = make(), make()
    opt = LAWA(adamw(model), k=K, every=EVERY, buffers=model.buffers(), device=window)
    alone = step_of(plain, adamw(plain))
    for number in range(STEPS):
        alone(number)
    snapshots = collected(opt, model, step_of(model, opt))
    assert all(map(torch.equal, plain.parameters(), model.parameters()))
    check(opt, model, snapshots)
    averaged = opt.averaged_state_dict(model)
    for name, tensor in model.state_dict().items():
        assert averaged[name].stride() == tensor.stride(), name
    assert averaged["0.weight"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="inductor and Triton need a C++ compiler and Python.h: no g++ or no python3-dev here",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("device", "mode"),
    [
        ("cpu", "default"),
        pytest.param("cuda", "default", marks=pytest.mark.gpu),
        # Under it, inductor records CUDA graphs, which find the weights where they were.
        pytest.param("cuda", "reduce-overhead", marks=pytest.mark.gpu),
    ],
)
def test_a_compiled_model(device: str, mode: str) -> None:
    torch._dynamo.reset()
    model = mlp(device)
    compiled = torch.compile(model, mode=mode)
    opt = LAWA(adamw(model), k=K, every=EVERY)

    def step(number: int) -> None:
        opt.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        compiled(batch(number, device)).square().mean().backward()
        opt.step()

    @torch.no_grad()
    def outputs() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(batch(0, device)).clone()

    snapshots = collected(opt, model, step)
    check(opt, model, snapshots)
    names = [name for name, _ in model.named_parameters()]
    mean = {name: m.float() for name, m in zip(names, means(snapshots), strict=True)}
    live, weights = outputs(), [weight.detach().clone() for weight in model.parameters()]
    for _ in range(3):
        with opt.averaged():
            expected = functional_call(model, mean, (batch(0, device),))
            torch.testing.assert_close(outputs(), expected, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, model.parameters(), weights))
    torch.testing.assert_close(outputs(), live)
    assert not torch.allclose(live, expected, rtol=1e-4, atol=1e-5), "there is nothing to tell"


@pytest.mark.parametrize(("device", "window"), WINDOWS)
def test_a_window_reads_the_same_wherever_it_is(device: str, window: str | None) -> None:
    # On a GPU so large that a copy to host memory takes longer than the steps after it.
    width = 64 if device == "cpu" else 2**20
    model = mlp(device, width)
    base = torch.optim.SGD(model.parameters(), lr=6.4 / width)
    opt = LAWA(base, k=K, every=1, device=window)
    beside = LAWA(base, k=K, every="manual")
    for number in range(STEPS):
        opt.zero_grad()
        model(batch(number, device)).square().mean().backward()
        opt.step()
        beside.collect()
    for latest in (None, 1, 2):
        one, other = (each.averaged_state_dict(model, latest) for each in (opt, beside))
        assert all(tensor.isfinite().all() for tensor in one.values()), "nothing to compare"
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_fsdp2_and_dtensors_on_one_rank(device: str) -> None:
    if device == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("in this torch FSDP2 does not run on the CPU")
    # In a process of its own, which ends its process group and what that leaves behind.
    worker = Path(__file__).parent.parent / "support" / "one_rank_worker.py"
    done = subprocess.run(
        [sys.executable, str(worker), device],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all is well"


@pytest.mark.gpu
def test_a_step_recorded_as_a_cuda_graph_is_collected_after_its_replays() -> None:
    model = mlp("cuda")
    opt = LAWA(adamw(model, capturable=True), k=K, every=EVERY)
    inputs = batch(0, "cuda")

    def train() -> None:
        opt.base.zero_grad(set_to_none=True)
        model(inputs).square().mean().backward()
        opt.base.step()

    # As torch asks for: some steps on another stream first.
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(beside)
    training, evaluation = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    opt.base.zero_grad(set_to_none=True)
    with torch.cuda.graph(training):
        train()
    with torch.no_grad(), torch.cuda.graph(evaluation):
        outputs = model(inputs)

    def step(number: int) -> None:
        inputs.copy_(batch(number, "cuda"))
        training.replay()
        if opt.schedule.step():
            opt.collect()

    snapshots = collected(opt, model, step)
    check(opt, model, snapshots)
    evaluation.replay()
    live = outputs.clone()
    # The graph reads the weights where they lie, so it sees the mean while that is there.
    with opt.averaged(), torch.no_grad():
        evaluation.replay()
        torch.testing.assert_close(outputs, model(inputs))
        assert not torch.equal(outputs, live)
    evaluation.replay()
    assert torch.equal(outputs, live)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, "cpu"])
def test_a_training_on_a_stream_of_its_own(window: str | None) -> None:
    model = mlp("cuda", 2**18)
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=K, every=EVERY, device=window)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def step(number: int) -> None:
        opt.zero_grad()
        model(batch(number, "cuda")).square().mean().backward()
        opt.step()

    with torch.cuda.stream(stream):
        snapshots = collected(opt, model, step)
        check(opt, model, snapshots)
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, "cpu"])
@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_a_step_never_waits_for_the_gpu(window: str | None, options: dict[str, bool]) -> None:
    model = mlp("cuda")
    opt = LAWA(adamw(model, **options), k=K, every=1, device=window)
    batches = [batch(number, "cuda") for number in range(STEPS)]

    def step(number: int) -> None:
        opt.zero_grad()
        model(batches[number]).square().mean().backward()
        opt.step()

    # The first makes the window and the optimizer's state.
    step(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            batches[0].sum().item()
        for number in range(1, STEPS):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert opt.num_snapshots == K


def allocated() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, "cpu"])
def test_memory_is_as_promised(window: str | None) -> None:
    # What the allocator rounds up, and a tile between snapshots and mean with its k columns.
    slack, tiles = 2**22, (1 + (K if window else 0)) * 4 * 2**22 + 2**22
    # What other tests have left must not go in the midst of this one.
    gc.collect()
    model = nn.Linear(8192, 4096, bias=False, device="cuda")
    parameters = model.weight.nbytes
    opt = LAWA(torch.optim.SGD(model.parameters(), lr=0.1), k=K, every="manual", device=window)
    before = allocated()
    opt.collect()
    # In host memory: one copy beside the parameters.
    promised = parameters if window else K * parameters
    assert promised <= allocated() - before <= promised + slack
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2 * K):
        opt.collect()
    assert torch.cuda.max_memory_allocated() - before <= promised + slack
    with opt.averaged():
        held = allocated() - before - promised
        assert parameters <= held <= parameters + slack
    peak = torch.cuda.max_memory_allocated() - before - promised
    assert peak <= parameters + tiles
    assert allocated() - before <= promised + slack


@pytest.mark.gpu
def test_a_window_of_more_elements_than_32_bits_count() -> None:
    elements = 2**29 + 3
    if torch.cuda.mem_get_info()[0] < 14 * 4 * elements:
        pytest.skip("needs 30 GB of free memory on the GPU")
    parameter = nn.Parameter(torch.empty(elements, device="cuda"))
    opt = LAWA(torch.optim.SGD([parameter], lr=0.1), k=5, every="manual")
    snapshots = []
    for number in range(5):
        torch.manual_seed(number)
        with torch.no_grad():
            parameter.normal_()
        snapshots.append(parameter.detach().clone())
        opt.collect()
    with opt.averaged():
        for begin in range(0, elements, 2**26):
            part = slice(begin, begin + 2**26)
            mean = sum(snapshot[part].double() for snapshot in snapshots) / 5
            torch.testing.assert_close(parameter[part].double(), mean, rtol=1e-6, atol=1e-6)
    assert torch.equal(parameter, snapshots[-1])
