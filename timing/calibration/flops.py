"""Floating-point operations of one step: a whole number that is the same on every machine.

It signs a workload, as a cross-check beside the time; it converts no time into another, since
machines do not run all operations at one rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

Shape = tuple[int, ...]


aten = torch.ops.aten


@dataclass(frozen=True)
class Flops:
    """The operations of one step.

    Attributes:
        total: floating-point operations; a multiplication and its addition are two.
        by_operation: the total, by PyTorch operation, such as "aten.mm"; which of them does a
            product may depend on the device, the total does not.
        not_counted: operations that ran and count as zero, by how often they ran; views, which
            compute nothing, are left out. Look here for a kernel of your own.
    """

    total: int
    by_operation: Mapping[str, int]
    not_counted: Mapping[str, int]


def count_flops(
    make: Callable[[], Callable[[], object]], device: torch.device | str = "meta"
) -> Flops:
    """Count the floating-point operations of a step, by PyTorch's own counter.

    Counted are the multiplications of matrices and vectors, convolutions and attention, forward and
    backward: an (m, k) matrix times a (k, n) one is 2·m·k·n, a convolution 2 · output positions ·
    elements of the filter · input channels of a group · output channels for each image, and its
    backward pass as much for the weight and again for the input, where their gradients are asked
    for. Borders of padding and the masked half of causal attention count in full. Everything that
    goes element by element counts as zero: biases, activations, softmax, normalisation (BatchNorm
    too), dropout, embeddings, the loss, EMA, most optimizers; `not_counted` names what ran.

    Fused kernels hide what they multiply (on the CPU an LSTM is undercounted 22 times, a fused
    transformer 14 times), so the step runs without them here, and what a GPU's flash attention
    computes twice is counted once. On the meta device nothing is computed and no memory is needed,
    whatever the model's size.

        def make():
            model = Model()
            inputs, targets = torch.empty(8, 64, dtype=torch.long), ...
            return lambda: loss(model(inputs), targets).backward()

        count_flops(make).total

    Args:
        make: builds model and batch, and returns the step, which takes no argument. It is called
            with `device` as PyTorch's default device, so what it creates is there; what comes from
            elsewhere it moves with `.to("meta")`. The model must not be compiled. Optimizers built
            with `fused=True` refuse the meta device: build them without, or leave them out.
        device: where to run it. A step that reads values, as `.item()` does, cannot run on the meta
            device; on "cpu" it takes time and memory and gives the same number.

    Raises:
        RuntimeError: the step cannot run on the meta device; why, and what to do.
    """
    recorder = _Recorder()
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    try:
        with torch.device(device):
            step = make()
        # The counter within the recorder: it takes operations apart and passes the parts on.
        with _without_fused_kernels(), recorder, counter:
            step()
    except RuntimeError as error:
        if torch.device(device).type != "meta":
            raise
        raise RuntimeError(
            f"this step cannot run on the meta device, which has shapes and no values: {error}\n"
            "Build the optimizer without fused=True and read no values (.item(), if tensor), or "
            'count with device="cpu"'
        ) from error
    by_operation = {
        str(operation): int(flops)
        for operation, flops in sorted(counter.flop_counts["Global"].items(), key=str)
    }
    return Flops(
        total=sum(by_operation.values()),
        by_operation=by_operation,
        not_counted={
            name: times
            for name, times in sorted(recorder.times.items())
            if name not in by_operation
        },
    )


class _Recorder(TorchDispatchMode):
    """A mode that counts how often each operation ran."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.times: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not (getattr(func, "is_view", False) or func.namespace == "profiler"):
            name = str(getattr(func, "overloadpacket", func))
            self.times[name] = self.times.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Run attention, recurrent layers and transformers as the matrix products they are."""
    backends: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    before = [backend.enabled for backend in backends]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        for backend in backends:
            backend.enabled = False
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _convolution_backward(
    grad: Shape, x: Shape, weight: Shape, *arguments: Any, **_: object
) -> int:
    # PyTorch's formula counts the weight's gradient once for each group.
    transposed, output_mask = arguments[4], arguments[7]
    forward: int = conv_flop_count(list(x), list(weight), list(grad), transposed=transposed)
    wanted: list[bool] = output_mask[:2]
    return forward * sum(wanted)


# What PyTorch's counter gets wrong, or leaves out though it is a product of matrices or vectors.
# Each is called with the shapes of the operation's arguments.
_FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution_backward: _convolution_backward,
    aten.mv: lambda matrix, *_, **__: 2 * prod(matrix),
    aten.addmv: lambda _added, matrix, *_, **__: 2 * prod(matrix),
    aten.dot: lambda one, *_, **__: 2 * prod(one),
    aten.vdot: lambda one, *_, **__: 2 * prod(one),
    aten.addbmm: lambda _added, one, other, **_: 2 * prod(one) * other[2],
}
