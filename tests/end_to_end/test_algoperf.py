"""The AlgoPerf entry in a stand-in of the harness, beside the same training without LAWA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support import algoperf_harness
from tests.support.algoperf_harness import (
    Workload,
    check_evaluated,
    plain_history,
    submission,
    train_once,
)
from tests.support.small_training import same
from tests.support.torchrun import torchrun

STEPS, EVALUATED = 20, (3, 8, 12, 19)


def test_the_average_is_evaluated_and_the_training_is_as_without() -> None:
    entry = submission()
    results, state, model = train_once(entry, Workload(), STEPS, EVALUATED)
    history = plain_history(entry, Workload(), STEPS)
    check_evaluated(entry, results, history)
    assert same(dict(model.state_dict()), history[-1])
    assert not state["optimizer"].swaps
    assert any("running_mean" in name for name in history[-1])


def test_a_training_goes_on_from_a_checkpoint_after_an_evaluation(tmp_path: Path) -> None:
    entry, checkpoint = submission(), tmp_path / "checkpoint"
    whole, _, model = train_once(entry, Workload(), STEPS, EVALUATED)
    train_once(entry, Workload(), 14, EVALUATED, checkpoint)
    assert torch.load(checkpoint)["global_step"] == 12
    resumed, _, again = train_once(entry, Workload(), STEPS, EVALUATED, checkpoint)
    assert list(resumed) == [19]
    assert same(resumed[19], whole[19])
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_sizes_rates_and_a_large_window(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = submission()
    assert entry.get_batch_size("wmt") == 128
    with pytest.raises(ValueError, match="no batch size"):
        entry.get_batch_size("wmt_post_ln")
    factors = [entry.factor(step, 1000) for step in range(1500)]
    assert max(factors) == factors[19] == 1
    assert factors[0] == pytest.approx(1 / 20)
    assert factors[1000:] == pytest.approx([entry.LOWEST] * 500)
    assert factors[20:1000] == sorted(factors[20:1000], reverse=True)

    class OnGPU(torch.nn.Module):
        def parameters(self, recurse: bool = True) -> object:
            return iter([Weight()])

    class Weight:
        nbytes, is_cuda, device = 10**9, True, 0

    memory = type("Properties", (), {"total_memory": 16 * 10**9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert entry.window_device(OnGPU()) == "cpu"
    assert "a window of 5.0 GB is kept in host memory" in capsys.readouterr().out
    memory.total_memory = 32 * 10**9
    assert entry.window_device(OnGPU()) is None
    assert not capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_two_ranks() -> None:
    done = torchrun(algoperf_harness.__file__)
    assert done.returncode == 0, done.stderr
