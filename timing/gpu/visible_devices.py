"""The GPUs and MIG instances that CUDA gives to this process, found without starting CUDA."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from timing.gpu.nvml import Card, Device, read_cards


class Visible(NamedTuple):
    """The devices that this process may use, and what is missing of them; None if nothing is."""

    devices: tuple[Device, ...]
    unavailable: str | None


def visible_devices() -> Visible:
    """Return the devices that CUDA gives to this process, in its order.

    It never starts CUDA, and never raises.

    Where torch has started CUDA it is asked for the UUIDs. Otherwise CUDA_VISIBLE_DEVICES is read
    as CUDA does: indices, UUIDs or unique beginnings of them; a wrong entry hides itself and all
    behind it. CUDA counts the fastest card first unless CUDA_DEVICE_ORDER is PCI_BUS_ID, NVML by
    bus, so an index is taken only where the two cannot differ. Of a card in MIG mode CUDA takes the
    first instance, unless an instance is named.
    """
    cards = read_cards()
    if isinstance(cards, str):
        return Visible((), cards)
    if not cards:
        return Visible((), "NVML runs and sees no GPU")
    if torch.cuda.is_initialized():
        uuids = [
            str(torch.cuda.get_device_properties(index).uuid)
            for index in range(torch.cuda.device_count())
        ]
        return _select([f"GPU-{uuid}|MIG-{uuid}" for uuid in uuids], cards)
    entries = os.environ.get("CUDA_VISIBLE_DEVICES")
    if entries is None:
        return _select([str(index) for index in range(len(cards))], cards)
    if entries.strip() in ("", "-1"):
        return Visible((), f"CUDA_VISIBLE_DEVICES={entries!r} hides every GPU")
    return _select([entry.strip() for entry in entries.split(",")], cards)


def _select(entries: list[str], cards: list[Card]) -> Visible:
    """Return the devices that entries name, up to the first that is wrong."""
    indices = {int(entry) for entry in entries if entry.isdecimal()}
    # The order is sure where it is NVML's own, and does not matter where every card is named.
    sure = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or indices >= set(range(len(cards)))
    devices: list[Device] = []
    absent = []
    for entry in entries:
        if entry.isdecimal() and int(entry) < len(cards) and not sure:
            reason = (
                f"GPU {entry} of CUDA_VISIBLE_DEVICES is counted in CUDA's own order, which NVML "
                "does not know: set CUDA_DEVICE_ORDER=PCI_BUS_ID, name it by its UUID, or use "
                "torch.cuda first"
            )
            return Visible((), reason)
        found, wrong = _find(entry, cards)
        if wrong is not None:
            absent.append(f"{wrong}; CUDA ignores it and all behind it")
            break
        if isinstance(found, str):
            absent.append(found)
        elif found in devices:
            return Visible((), f"{found.uuid} is visible twice, so CUDA gives no GPU")
        elif found is not None:
            devices.append(found)
    return Visible(tuple(devices), "; ".join(absent) or None)


def _find(entry: str, cards: list[Card]) -> tuple[Device | str | None, str | None]:
    """Return the device of an entry, or why it cannot be read; and what is wrong with the entry."""
    if entry.isdecimal():
        if int(entry) >= len(cards):
            return None, f"there is no GPU {entry}, only {len(cards)}"
        return _whole(cards[int(entry)], f"GPU {entry}"), None
    names = tuple(name.lower() for name in entry.split("|"))
    if not all(name.startswith(("gpu-", "mig-")) for name in names):
        return None, f"{entry!r} is neither an index nor a GPU's or MIG instance's UUID"
    found: list[Device | str] = [
        _whole(card, card.device.uuid)
        for card in cards
        if card.device is not None and card.device.uuid.lower().startswith(names)
    ]
    found += [
        instance
        for card in cards
        for instance in card.instances
        if instance.uuid.lower().startswith(names)
    ]
    if len(found) != 1:
        what = "no GPU or MIG instance" if not found else f"{len(found)} of them"
        return None, f"{what} has a UUID that begins with {entry}"
    return found[0], None


def _whole(card: Card, called: str) -> Device | str:
    """Return the device CUDA uses for a card, or why there is none to read."""
    if card.device is None:
        return f"{called} is not read: {card.refusal}"
    if not card.mig_mode:
        return card.device
    return card.instances[0] if card.instances else f"{called} is in MIG mode without an instance"
