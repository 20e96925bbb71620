"""Others' ways to average weights, as their users would use them.

Two are written anew after the descriptions of them: `LAWAScheduler`, which Kaddour's code gives to
a training loop, and the offline averaging of checkpoint files of Ajroldi, Orvieto and Geiping.
"""

import copy
from collections import deque
from functools import partial

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

try:
    from ema_pytorch import EMA
except ImportError:
    EMA = None
try:
    from schedulefree import SGDScheduleFree
except ImportError:
    SGDScheduleFree = None
try:
    from timm.utils import ModelEmaV3
except ImportError:  # it needs torchvision
    ModelEmaV3 = None

DECAY = 0.999
# What a benchmark without one of them is to say.
ABSENT = [
    f"{name}: skipped, it is not installed"
    for name, found in (
        ("ema-pytorch", EMA),
        ("Schedule-Free", SGDScheduleFree),
        ("timm's ModelEmaV3 (or its torchvision)", ModelEmaV3),
    )
    if found is None
]


class LAWAScheduler:
    """Deep copies of the model on the CPU, the k latest, summed anew at each transfer.

    This is what the published code is meant to do, with its faults left out: each instance has a
    store of its own; that holds k copies, also of a model which is on the CPU already, and no
    alias; and an integer buffer is taken from the latest, where dividing its sum fails. The sum is
    in the weights' own dtype, as published.
    """

    def __init__(self, model, k):
        self.model = model
        self.k = k
        self.store = []

    def collect(self):
        self.store.append(copy.deepcopy(self.model).to("cpu").state_dict())
        self.store = self.store[-self.k :]

    def transfer(self):
        mean = copy.deepcopy(self.store[0])
        for state in self.store[1:]:
            for name in mean:
                mean[name] += copy.deepcopy(state[name])
        for name, latest in self.store[-1].items():
            if latest.is_floating_point():
                mean[name] /= len(self.store)
            else:
                mean[name] = latest
        self.model.load_state_dict(mean)


class OfflineAveraging:
    """A queue of the k latest checkpoints and their running mean, both on the CPU.

    A file is read whole; a k-th of it goes into the mean, and a k-th of the oldest out of it.
    """

    def __init__(self, k):
        self.queue = deque(maxlen=k)
        self.mean = {}

    def add(self, state):
        k = self.queue.maxlen
        if len(self.queue) == k:
            for name, tensor in self.queue[0].items():
                self.mean[name].sub_(tensor.div(k))
        self.queue.append(state)
        for name, tensor in state.items():
            if name in self.mean:
                self.mean[name].add_(tensor.div(k))
            else:
                self.mean[name] = tensor.div(k)


def ema(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))


def swa(model):
    return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())


def updates(model, k, leave_out=()):
    """What each peer does with the model's weights where LAWA collects, by name."""
    found = {
        "AveragedModel, EMA": partial(ema(model).update_parameters, model),
        "AveragedModel, SWA": partial(swa(model).update_parameters, model),
    }
    if EMA is not None:
        average = EMA(model, beta=DECAY, update_after_step=0, update_every=1)
        found["ema-pytorch"] = average.update
    if "LAWAScheduler" not in leave_out:
        found["LAWAScheduler"] = LAWAScheduler(model, k).collect
    if ModelEmaV3 is not None:
        found["timm's ModelEmaV3"] = partial(ModelEmaV3(model, DECAY).update, model)
    return found


def swaps(model, k, leave_out=()):
    """How each peer has its average evaluated in the model, and goes on training, by name."""
    found = {}
    if "LAWAScheduler" not in leave_out:
        scheduler = LAWAScheduler(model, k)
        for _ in range(k):
            scheduler.collect()
        found["LAWAScheduler, transfer"] = scheduler.transfer
    found["EMA by state dicts"] = swapped_by_state_dicts(model)
    if EMA is not None:
        found["ema-pytorch, copied in"] = copied_in_by_ema_pytorch(model)
    if SGDScheduleFree is not None and "Schedule-Free" not in leave_out:
        found["Schedule-Free, eval() and train()"] = schedule_free_swap(model)
    return found


def copied_in_by_ema_pytorch(model):
    average = EMA(model, beta=DECAY, update_after_step=0, update_every=1)

    @torch.no_grad()
    def swap():
        live = copy.deepcopy(model.state_dict())
        average.copy_params_from_ema_to_model()
        model.load_state_dict(live)

    return swap


def schedule_free_swap(model):
    opt = SGDScheduleFree(model.parameters(), lr=1e-9)
    opt.train()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    opt.zero_grad()

    def swap():
        opt.eval()
        opt.train()

    return swap


def swapped_by_state_dicts(model):
    """The usual way to evaluate the weights of an EMA in the model, and go on training."""
    average = ema(model)

    @torch.no_grad()
    def swap():
        live = copy.deepcopy(model.state_dict())
        model.load_state_dict(average.module.state_dict())
        model.load_state_dict(live)

    return swap
