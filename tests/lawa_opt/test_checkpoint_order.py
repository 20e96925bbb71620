"""Which checkpoints are averaged, in which order, and that it is said."""

import logging
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lawa_opt import CheckpointError, average_checkpoints
from lawa_opt.__main__ import main
from lawa_opt.weights_by_step import weighing

WEIGHTS = {"last": {"last": 1}, "ema": {"weights": "ema:1"}}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(names):
    """Checkpoint number i holds i; a name without a suffix is a folder."""
    for i, name in enumerate(names):
        path = Path(name)
        path = path if path.suffix else path / "pytorch_model.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"w": torch.tensor([float(i)]), "n": torch.tensor(i)}, path)


def average(names, **options):
    return average_checkpoints(names, **options)["w"].item()


def command(*arguments):
    return main(["average", *arguments, "--out", "o.pt", "--overwrite"])


KNOWN = [
    ["step-200.pt", "step-1000.pt"],
    ["00090.pt", "00100.pt"],
    ["checkpoint-900", "checkpoint-1000"],
    ["checkpoint-900/pytorch_model.bin", "checkpoint-1000"],
    ["epoch_1/step_900.pt", "epoch_2/step_1000.pt"],
    ["epoch=9-step=900.ckpt", "epoch=10-step=1000.ckpt"],
    ["epoch=9-loss=0.11.ckpt", "epoch=10-loss=0.1.ckpt"],  # the metric says another order
    ["step=9-acc=91.pt", "step=10-acc=90.pt"],
    ["epoch=9-v1.ckpt", "epoch=10.ckpt"],
    ["resnet50_9.pt", "resnet50_10.pt"],
    ["part0.25.pt", "part0.50.pt"],
    ["9k.pt", "10k.pt"],
]


@pytest.mark.parametrize("names", KNOWN, ids=lambda names: names[0])
def test_the_order_is_that_of_the_numbers_however_they_are_given(names):
    save(names)
    for given_names in (names, names[::-1]):
        assert average(given_names, last=1) == 1
        assert average(given_names, weights="1-sqrt") == pytest.approx(1 - 0.5**0.5)
        assert average_checkpoints(given_names)["n"] == 1  # the newest's also without them
        assert average(given_names, last=1, order="given") == names.index(given_names[-1])


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(st.integers(0, 10**12), min_size=2, max_size=6, unique=True),
    template=st.sampled_from(["step-{}.pt", "{}.pt", "run7/{}-of-9.pt", "ckpt_{:013}.pt", "s{}"]),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_newest_are_those_of_the_largest_numbers(tmp_path_factory, steps, template, shuffle):
    folder = tmp_path_factory.mktemp("run")
    names = [str(folder / template.format(step)) for step in sorted(steps)]
    save(names)
    shuffle.shuffle(names)
    m = shuffle.randint(1, len(steps))
    expected = sum(range(len(steps) - m, len(steps))) / m
    assert average(names, last=m) == pytest.approx(expected)


UNKNOWN = [
    (["e1.pt", "last.pt", "e2.pt"], "no number tells last.pt from the others"),
    (["a.pt", "b.pt"], "no number tells a.pt"),
    (["a/step-5.pt", "b/step-5.pt"], "no number tells a/step-5.pt"),
    (["e5.pt", "e5-ema.pt", "e6.pt"], "e5.pt and e5-ema.pt have equal numbers"),
    (["epoch_1/step_900.pt", "epoch_2/step_800.pt"], "of .*_800.pt and .*_900.pt disagree"),
    (["seed1-size9.pt", "seed2-size8.pt"], "of .* disagree"),
    (["m-1.9.pt", "m-1.10.pt"], "1.10 and 1.9 may be decimal numbers or versions"),
    (["step-900k.pt", "step-1M.pt"], "no number tells step-900k.pt"),
    (["step-2e2.pt", "step-1e3.pt"], "of .* disagree"),
    (["2024-01-31.pt", "2024-02-01.pt"], "of .* disagree"),
]


@pytest.mark.parametrize(("names", "reason"), UNKNOWN, ids=lambda value: value[0])
def test_an_order_that_counts_and_is_not_known_is_refused(names, reason, capsys):
    save(names)
    for options in WEIGHTS.values():
        with pytest.raises(CheckpointError, match=reason) as refusal:
            average(names, **options)
        assert "--order given" in str(refusal.value)
        average(names, order="given", **options)
    # A uniform mean of all has no order, but the newest's integers.
    averaged = average_checkpoints(names)
    assert averaged["w"] == pytest.approx((len(names) - 1) / 2)
    assert averaged["n"] == len(names) - 1
    assert command(*names) == 0
    assert f"so the newest is {names[-1]}" in capsys.readouterr().out


def test_weights_one_by_one_go_with_the_paths_as_given():
    names = ["e9.pt", "e10.pt"]
    save(names)
    assert average(names, weights=[1, 3]) == 0.75
    assert average(names[::-1], weights=[1, 3], order="given") == 0.25
    with pytest.raises(CheckpointError, match=r"not in the order of their numbers.*e9.pt: sort"):
        average(names[::-1], weights=[1, 3])
    save(["a.pt", "b.pt"])
    assert average(["b.pt", "a.pt"], weights=[1, 3]) == 0.25


def test_weights_go_by_the_steps_of_the_files_and_not_by_their_places():
    names = ["step-10.pt", "step-20.pt", "step-60.pt"]
    save(names)
    weights = weighing("1-sqrt")([10, 20, 60])
    assert weights != pytest.approx(weighing("1-sqrt")([1, 2, 3]), abs=0.1)
    said = average_checkpoints(names[::-1], "o.pt", weights="1-sqrt")
    assert said.shares == pytest.approx(weights)
    assert not said.notes
    Path("table.csv").write_text("step,weight\n60,1\n20,3\n10,0")
    assert average(names, weights="table.csv") == (3 * 1 + 1 * 2) / 4
    assert average(names, weights=lambda steps: [step == 20 for step in steps]) == 1
    # As given and not rising, they have places alone.
    said = average_checkpoints(names[::-1], "o.pt", weights="1-sqrt", order="given", overwrite=True)
    assert said.shares == pytest.approx(weighing("1-sqrt")([1, 2, 3]))
    assert said.notes == (
        "the steps are not known, or not in the order given, so the weights go by places",
    )


LINKS = {
    "symbolic": os.symlink,
    "hard": os.link,
    "the same path": lambda source, link: None,
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("order", ["number", "given"])
def test_a_file_counts_once_whatever_its_names(kind, order, capsys, caplog):
    save(["e1.pt", "e2.pt", "e6.pt"])
    second = "e6.pt" if kind == "the same path" else "best.pt"
    LINKS[kind]("e6.pt", second)
    names = [second, "e1.pt", "e2.pt", "e6.pt"]
    if order == "given":
        names = [*names[1:], second]
    for options in ({"last": 2}, {}):
        caplog.clear()
        mean = average(names, order=order, **options)
        assert mean == (1.5 if options else 1.0)
        said = [record.getMessage() for record in caplog.records]
        assert said == [f"{second} is e6.pt once more, and counts once"]
    assert command(*names, "--order", order, "--weights", "1-sqrt") == 0
    assert said[0] in capsys.readouterr().out.splitlines()
    with pytest.raises(CheckpointError, match=f"4 .* needed, but 3 given; {second} is e6.pt once"):
        average(names, last=4)


def test_a_checkpoint_counts_once_whether_its_folder_or_its_file_is_given(capsys):
    save(["checkpoint-9", "checkpoint-10"])
    Path("latest").symlink_to("checkpoint-10")
    names = ["latest", "checkpoint-10/pytorch_model.bin", "checkpoint-9", "checkpoint-10"]
    assert command(*names) == 0
    lines = capsys.readouterr().out.splitlines()
    assert torch.load("o.pt")["w"] == 0.5
    assert "  0.5000  number  9  checkpoint-9/pytorch_model.bin" in lines
    assert "  0.5000  number 10  checkpoint-10/pytorch_model.bin" in lines
    assert sum("counts once" in line for line in lines) == 2


def test_what_was_averaged_is_said(caplog, capsys):
    names = [f"e{i}.pt" for i in range(1, 12)]
    save(names)
    random.Random(0).shuffle(names)
    said = average_checkpoints(names, "o.pt", last=3, weights="ema:1")
    assert said.paths == tuple(map(Path, ["e9.pt", "e10.pt", "e11.pt"]))
    assert said.shares == (0.25, 0.25, 0.5)
    assert said.out == Path("o.pt")
    assert command(*names, "--last", "3", "--weights", "ema:1") == 0
    assert capsys.readouterr().out == (
        "averaged 3 checkpoint(s), in the order of the numbers in their names, with these shares:\n"
        "  0.2500  number  9  e9.pt\n  0.2500  number 10  e10.pt\n  0.5000  number 11  e11.pt\n"
        "no steps are known, so the weights go by the numbers, as if these were\nwritten: o.pt\n"
    )
    caplog.set_level(logging.INFO, logger="lawa_opt")
    caplog.clear()
    average(names, last=2)
    (record,) = caplog.records
    assert "  0.5000  number 10  e10.pt\n  0.5000  number 11  e11.pt" in record.getMessage()


def test_no_checkpoint_that_was_given_is_overwritten():
    save(["e1.pt", "e2.pt"])
    os.link("e1.pt", "again.pt")
    for out in ("e1.pt", "again.pt"):  # of which the average takes no part
        with pytest.raises(CheckpointError, match=f"{out} is part of the input e1.pt"):
            average_checkpoints(["e1.pt", "e2.pt"], out, last=1)
    assert torch.load("e1.pt")["w"] == 0
