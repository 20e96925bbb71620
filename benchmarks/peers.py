"""Others' ways to average weights, as their users would use them.

Two are written anew after the descriptions of them: `LAWAScheduler`, which Kaddour's code gives to
a training loop, and the offline averaging of checkpoint files of Ajroldi, Orvieto and Geiping.
"""

import copy
from collections import deque

import torch
from ema_pytorch import EMA
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

try:
    from timm.utils import ModelEmaV3
except ImportError:  # it needs torchvision
    ModelEmaV3 = None

DECAY = 0.999


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


def updates(model, k):
    """What each peer does with the model's weights where LAWA collects, by name."""
    averaged_ema, averaged_swa = ema(model), swa(model)
    found = {
        "AveragedModel, EMA": lambda: averaged_ema.update_parameters(model),
        "AveragedModel, SWA": lambda: averaged_swa.update_parameters(model),
        "ema-pytorch": EMA(model, beta=DECAY, update_after_step=0, update_every=1).update,
        "LAWAScheduler": LAWAScheduler(model, k).collect,
    }
    if ModelEmaV3 is not None:
        averaged_timm = ModelEmaV3(model, DECAY)
        found["timm's ModelEmaV3"] = lambda: averaged_timm.update(model)
    return found


def swapped_by_state_dicts(model):
    """The usual way to evaluate the weights of an EMA in the model, and go on training."""
    average = ema(model)

    @torch.no_grad()
    def swap():
        live = copy.deepcopy(model.state_dict())
        model.load_state_dict(average.module.state_dict())
        model.load_state_dict(live)

    return swap
