"""A user's file that is calibrated in processes of its own."""

SETUP = '''
"""A workload that says which processes measured it."""

import os
import sys
import time

import torch

from timing import CalibrationTarget, Operation


def sleeps(log, batch=8):
    def step():
        time.sleep(0.002)

    with open(log, "a") as file:
        print(os.getpid(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], file=file)
    operations = {"train_step": Operation(step), "collect": Operation(step, every=5)}
    return CalibrationTarget({"workload": "sleeps", "batch": batch}, operations)


def broken():
    print("this much is known", file=sys.stderr)
    raise RuntimeError("there is no such data set")


def leaves():
    sys.exit(0)


def odd():
    raise BaseException("no Exception")


def crashes():
    os.abort()


def immense():
    return CalibrationTarget({"flops": 10**400}, {"sleep": Operation(lambda: time.sleep(600))})


def other():
    return 3


def vague():
    return CalibrationTarget({"shape": (8, 8)}, {})


def hangs():
    time.sleep(600)


def waits(log):
    with open(log, "w") as file:
        print(os.getpid(), file=file)
    time.sleep(600)
'''
