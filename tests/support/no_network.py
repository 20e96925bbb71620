"""Tests that must not reach beyond this machine."""

from __future__ import annotations

import socket
from typing import Any

import pytest


def refuse_connections(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Let every connection of this process fail, and say who tried."""

    def refuse(_: Any, address: Any) -> None:
        raise AssertionError(f"{who} connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
