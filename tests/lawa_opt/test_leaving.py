"""A training that leaves LAWA goes on as if it had never had one."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lawa_opt import LAWA, leave
from lawa_opt.cli.app import main
from tests.support.small_training import same, small_model, train, weights_of


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


@pytest.mark.parametrize("make", [adamw, sgd])
def test_it_is_what_the_optimizer_alone_would_have_saved(make: Any) -> None:
    plain, model = small_model(), nn.Sequential(*small_model(), nn.BatchNorm1d(2))
    alone, opt = make(plain), LAWA(make(model[:3]), k=3, every=1, buffers=model[3])
    train(plain, alone, 4)
    train(model[:3], opt, 4)
    saved = opt.state_dict()
    before = copy.copy(saved)
    assert same(leave(saved), alone.state_dict())
    assert same(before, saved)
    assert "lawa_buffers" in saved


def test_the_command_writes_a_file_that_the_plain_training_goes_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, model = small_model(), small_model()
    alone, opt = adamw(plain), LAWA(adamw(model), k=3, every=1)
    train(plain, alone, 4)
    train(model, opt, 4)
    checkpoint: dict[str, Any] = OrderedDict(
        model=model.state_dict(), optimizers=[opt.state_dict()], epoch=3, note={"k": "a word"}
    )
    torch.save(checkpoint, tmp_path / "lawa.pt")
    arguments = ["leave", str(tmp_path / "lawa.pt"), str(tmp_path / "plain.pt")]
    assert main(arguments) == 0
    assert "plain.pt: " in capsys.readouterr().out.replace("\n", "")
    left = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert same(left["optimizers"], [alone.state_dict()])
    assert {name: left[name] for name in ("epoch", "note")} == {"epoch": 3, "note": {"k": "a word"}}
    twin = small_model(1)
    twin.load_state_dict(left["model"])
    again = adamw(twin)
    again.load_state_dict(left["optimizers"][0])
    train(plain, alone, range(4, 7))
    train(twin, again, range(4, 7))
    assert same(weights_of(plain), weights_of(twin))
    assert main(arguments) == 1
    assert "plain.pt exists: say --overwrite" in capsys.readouterr().err.replace("\n", "")
    assert main([*arguments, "--overwrite"]) == 0
    assert main(["leave", str(tmp_path / "plain.pt"), str(tmp_path / "again.pt")]) == 1
    assert "no window of LAWA in it" in capsys.readouterr().err
    assert not (tmp_path / "again.pt").exists()
    assert main(["leave", str(tmp_path / "lawa.pt"), str(tmp_path / "lawa.pt")]) == 1
    assert "is part of the input" in capsys.readouterr().err


def test_beside_averaged_weights_it_is_refused() -> None:
    model = small_model()
    opt = LAWA(adamw(model), k=3, every=1)
    train(model, opt, 4)
    opt.eval()
    with pytest.raises(ValueError, match=r"load it into a LAWA, call train\(\), and save"):
        leave({"optimizer": opt.state_dict()})
