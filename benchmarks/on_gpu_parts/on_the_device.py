"""What averaging costs on a GPU, beside its peers and the least that the bytes must take.

The benchmarks of `averaging.py` and of `training_steps.py` with the clock of CUDA events, for more
parameters. LAWAScheduler and Schedule-Free are left out: the one takes seconds for each of its
copies in host memory, the other memory that the largest model does not leave. Then whole steps of
fused AdamW, alone and with a LAWA around it that collects never and always. And a window in host
memory beside a running step of matrix products: the copy there is hidden as far as step and copy
together take no longer than the longer of both.
"""

import gc
from itertools import product

import torch
from averaging import (
    DTYPES,
    LAYOUTS,
    K,
    Model,
    bare_copy,
    collecting_row,
    fits,
    in_pinned_memory,
    label,
    lawa_of,
    reading_rows,
)
from peers import ABSENT
from rows import Row, cpu_seconds, cuda_seconds, scaled, seconds_of
from training_steps import step_rows

from lawa_opt import LAWA
from on_gpu_parts.part import Part

MILLIONS, SMOKE_MILLIONS = (10, 100, 1000), (0.1,)
LEFT_OUT = ("LAWAScheduler", "Schedule-Free")
# Of the parameters at once, at most: the model, k + 1 copies, a window of k, and the rest.
COPIES_AT_ONCE = 3 * K + 3
ROUNDS = 4
STEP_MILLIONS, SMOKE_STEP_MILLIONS = 100, 0.1
# Of a step beside a copy: how many times as long as the copy it is to take.
STEPS_BESIDE = (2.0, 0.5)
# In a row, for the copy of one step is beside the next.
STEPS_IN_A_ROW = 10


def all_sizes(part, rounds, seconds):
    """One size after the other, the smallest first: of those that there is memory for."""
    sizes = SMOKE_MILLIONS if part.smoke else MILLIONS
    for millions, tensors, dtype in product(sizes, LAYOUTS.values(), DTYPES):
        size = label(millions, tensors, dtype)
        gc.collect()
        if part.device == "cuda":
            # What smaller tensors have left behind is of no use to larger ones.
            torch.cuda.empty_cache()
        if not fits(millions * 1e6 * dtype.itemsize * COPIES_AT_ONCE, part.device):
            part.note(f"{size}: skipped, this device's memory does not hold all of it")
            continue
        try:
            one_size(part, Model(millions, tensors, dtype, part.device), size, rounds, seconds)
        except torch.OutOfMemoryError as error:
            part.note(f"{size}: {error}")


def one_size(part, *of_size):
    """Collecting, then reading."""
    part.add(collecting_row(*of_size, leave_out=LEFT_OUT))
    gc.collect()
    part.add(*reading_rows(*of_size, leave_out=LEFT_OUT))


def whole_step_rows(millions, device, rounds, seconds):
    """Steps of fused AdamW, each of its own on the same parameters."""
    model = Model(millions, LAYOUTS["many"], torch.float32, device)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-9)

    def adamw():
        return torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)

    calls = {
        "alone": adamw().step,
        "LAWA that does not collect": LAWA(adamw(), k=K, every=10**12).step,
        "LAWA, every=1": LAWA(adamw(), k=K, every=1).step,
    }
    taken = {name: scaled(each, 1e3) for name, each in seconds_of(calls, rounds, seconds).items()}
    alone = taken.pop("alone")
    for name, samples in taken.items():
        size = f"{label(millions, LAYOUTS['many'], torch.float32)}, {name}"
        yield Row.of("step of fused AdamW", size, "ms", samples, {"alone": alone})


def beside_a_step_rows(millions, device, window, rounds, seconds):
    """A step of matrix products with a collect into host memory, beside the step and the copy."""
    model = Model(millions, LAYOUTS["few"], torch.float32, device)
    parameters = list(model.parameters())
    opt = lawa_of(model, K, window)
    side = 4096 if device == "cuda" else 64
    matrix = torch.randn(side, side, device=device)
    out = torch.empty_like(matrix)
    copy = bare_copy(model, window, k=1)
    calls = {"product": lambda: torch.mm(matrix, matrix, out=out), "copy": copy}
    product_seconds, copy_seconds = map(min, seconds_of(calls, 3, seconds).values())

    def in_a_row(products, collects):
        def steps():
            for _ in range(STEPS_IN_A_ROW):
                for _ in range(products):
                    torch.mm(matrix, matrix, out=out)
                # As the optimizer's update does, right before a collect and after the one before.
                with torch.no_grad():
                    torch._foreach_mul_(parameters, 1.0)
                if collects:
                    opt.collect()
            for ring in opt.window.rings:
                ring.storage.synchronize()

        return steps

    for times in STEPS_BESIDE:
        products = max(1, round(times * copy_seconds / product_seconds))
        calls = {
            "step": in_a_row(products, collects=False),
            "both": in_a_row(products, collects=True),
            "copy": copy,
        }
        taken = {
            name: scaled(each, 1e3 / (1 if name == "copy" else STEPS_IN_A_ROW))
            for name, each in seconds_of(calls, rounds, seconds).items()
        }
        both, step, copied = taken["both"], taken["step"], taken["copy"]
        one_after_the_other = [sum(pair) for pair in zip(step, copied, strict=True)]
        longer = [max(pair) for pair in zip(step, copied, strict=True)]
        yield Row.of(
            "step with a collect into host memory",
            f"{label(millions, LAYOUTS['few'], torch.float32)}, {products} products of {side} "
            "in a step",
            "ms",
            both,
            {"the step alone": step, "step, then copy": one_after_the_other},
            longer,
        )


def main():
    part = Part(__doc__)
    torch.set_num_threads(1)
    seconds = cpu_seconds if part.smoke else cuda_seconds
    rounds = 2 if part.smoke else ROUNDS
    millions = SMOKE_STEP_MILLIONS if part.smoke else STEP_MILLIONS
    # torch holds "cpu:0" for another device than "cpu": the same code without a GPU.
    window = "cpu:0" if part.smoke else "cpu"
    for absent in ABSENT:
        part.note(absent)
    part.add(*(row.at(f"{row.size}, {part.device}") for row in step_rows(1, part.device)))
    part.add(*whole_step_rows(millions, part.device, rounds, seconds))
    part.add(*beside_a_step_rows(millions, part.device, window, rounds, seconds))
    for row in in_pinned_memory(2, (millions,), seconds, part.device, window):
        part.add(row)
    # Last, so that a part that is killed lacks the largest alone.
    all_sizes(part, rounds, seconds)


if __name__ == "__main__":
    main()
