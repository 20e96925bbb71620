"""An AlgoPerf entry for the self-tuning rules: AdamW, read through the average of LAWA.

README.md beside this file tells how the harness runs it.
"""

import torch
import torch.distributed as dist
from algoperf import spec  # type: ignore[attr-defined] # of the harness, not this folder

from lawa_opt import LAWA

K = 5
RATE, BETAS, WEIGHT_DECAY = 2e-3, (0.9, 0.995), 0.08
WARMUP, LOWEST = 0.02, 0.1  # a share of the step hint, and of the rate
# The rest of the device's memory is for the training. A window of 4 GB times 5 is not.
LARGEST_WINDOW = 0.25

BATCH_SIZES = {
    "criteo1tb": 262_144,
    "fastmri": 32,
    "finewebedu_lm": 64,
    "imagenet_resnet": 1024,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "mnist": 16,
    "ogbg": 512,
    "wmt": 128,
}


def get_batch_size(workload_name):
    # The harness asks again with the base workload's name on a ValueError.
    if workload_name not in BATCH_SIZES:
        raise ValueError(f"no batch size is known for workload {workload_name}")
    return BATCH_SIZES[workload_name]


def factor(step, hint):
    """Warm up, fall to a tenth until the hint, and stay there: the rules allow thrice the time."""
    warmup = max(int(WARMUP * hint), 1)
    if step < warmup:
        return (step + 1) / warmup
    left = max(1 - (step - warmup) / max(hint - warmup, 1), 0)
    return LOWEST + (1 - LOWEST) * left


def window_device(model):
    """Where the window goes: beside the weights, or into host memory where it is too large."""
    tensors = [*model.parameters(), *model.buffers()]
    window = K * sum(tensor.nbytes for tensor in tensors)
    if not tensors[0].is_cuda:
        return None
    memory = torch.cuda.get_device_properties(tensors[0].device).total_memory
    if window <= LARGEST_WINDOW * memory:
        return None
    print(f"LAWA: a window of {window / 1e9:.1f} GB is kept in host memory, and not on the device")
    return "cpu"


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    opt = LAWA(
        torch.optim.AdamW(
            model_params.parameters(), lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY
        ),
        k=K,
        every="auto",
        buffers=model_params,
        device=window_device(model_params),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: factor(step, workload.step_hint))
    # A checkpoint holds the state_dict() of each: of LAWA also the window and the live weights.
    return {"optimizer": opt, "scheduler": schedule}


def update_params(workload, current_param_container, model_state, batch, optimizer_state, rng, **_):
    opt, model = optimizer_state["optimizer"], current_param_container
    # First of all: the average may still be in the model, from an evaluation or a checkpoint.
    opt.train()
    model.train()
    opt.zero_grad()
    logits, model_state = workload.model_fn(
        params=model,
        augmented_and_preprocessed_input_batch=batch,
        model_state=model_state,
        mode=spec.ForwardPassMode.TRAIN,
        rng=rng,
        update_batch_norm=True,
    )
    losses = workload.loss_fn(
        label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights")
    )
    # DDP takes the mean over the ranks, which may have unequally many valid examples.
    examples, ranks = losses["n_valid_examples"], 1
    if dist.is_initialized():
        examples, ranks = examples.clone(), dist.get_world_size()
        dist.all_reduce(examples)
    (losses["summed"] * ranks / examples).backward()
    opt.step()
    optimizer_state["scheduler"].step()
    return optimizer_state, model, model_state


def prepare_for_eval(current_param_container, model_state, optimizer_state, **_):
    opt = optimizer_state["optimizer"]
    if opt.num_snapshots == K:
        opt.eval()  # until the next update_params: evaluated, and saved after it
    return optimizer_state, current_param_container, model_state


def data_selection(
    workload,
    input_queue,
    optimizer_state,
    current_param_container,
    model_state,
    hyperparameters,
    global_step,
    rng,
):
    return next(input_queue)
