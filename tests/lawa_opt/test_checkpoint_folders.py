"""Folders of checkpoints, steps that files tell, and averages that say what they were made of."""

import hashlib
import json
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lawa_opt import CheckpointError, average_checkpoints
from lawa_opt.__main__ import main
from lawa_opt.averaging_files import mean as mean_of_files
from lawa_opt.averaging_files import write_distributed
from lawa_opt.averaging_files.choose import Selection, choose_checkpoints
from lawa_opt.averaging_files.verify import verify_average
from tests.support.torchrun import ROOT, torchrun

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed.*")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(value, path, **beside):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    state = {"w": torch.full((3, 2), float(value)), "n": torch.tensor(value)}
    if Path(path).suffix == ".safetensors":
        save_file(state, path, {name: str(entry) for name, entry in beside.items()})
    else:
        torch.save({"model": state} | beside if beside else state, path)
    return path


def save_dcp(value, folder, **beside):
    state = {"w": torch.full((3, 2), float(value)), "n": torch.tensor(value)}
    checkpoint.save({"model": state, **beside}, checkpoint_id=folder, no_dist=True)


def run(*arguments):
    return main(["average", *map(str, arguments)])


def chosen(inputs, **options):
    return [each.step for each in choose_checkpoints(inputs, Selection(**options)).checkpoints]


# Steps


def test_steps_are_found_where_each_layout_has_them():
    for i, step in enumerate((900, 1000)):
        save(step, f"names/step-{step}.pt")
        save(step, f"trainer/{'ba'[i]}/pytorch_model.bin")
        Path(f"trainer/{'ba'[i]}/trainer_state.json").write_text(json.dumps({"global_step": step}))
        save(step, f"lightning/{'ba'[i]}.ckpt", global_step=step, epoch=1)
        save(step, f"epochs/{'ba'[i]}.pth", epoch=step)
        save(step, f"metadata/{'ba'[i]}.safetensors", step=step)
        save_dcp(step, f"dcp/{'ba'[i]}", step=step, optim={"m": torch.ones(2)})
    for folder, key in (
        ("names", ""),
        ("trainer", ""),
        ("lightning", "model"),
        ("epochs", "model"),
        ("metadata", ""),
        ("dcp", "model"),
    ):
        assert chosen([folder], key=key) == [900, 1000], folder
        assert average_checkpoints([folder], key=key, last=1)["n"] == 1000
        for options in ({"from_step": 901}, {"at_least": 101}):
            assert chosen([folder], key=key, **options) == [1000], folder
        assert chosen([folder], key=key, to_step=999) == [900]


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(0, 200), min_size=1, max_size=8, unique=True).map(sorted),
    low=st.none() | st.integers(0, 200),
    high=st.none() | st.integers(0, 200),
    apart=st.none() | st.integers(1, 60),
    last=st.none() | st.integers(1, 4),
)
def test_the_range_is_that_of_a_slow_and_obvious_twin(
    tmp_path_factory, steps, low, high, apart, last
):
    folder = tmp_path_factory.mktemp("run")
    for step in steps:
        save(step, folder / f"step-{step}.pt")
    wanted = []
    for step in reversed(steps):
        inside = (low is None or step >= low) and (high is None or step <= high)
        if inside and (not wanted or wanted[0] - step >= (apart or 0)):
            wanted.insert(0, step)
    options = {"from_step": low, "to_step": high, "at_least": apart, "last": last}
    if len(wanted) < (last or 1):
        with pytest.raises(ValueError, match=r"needed|no checkpoint|is after"):
            chosen([folder], **options)
    else:
        assert chosen([folder], **options) == wanted[-(last or 0) :]


def test_what_is_left_out_is_said(capsys):
    for step in (10, 20, 25, 30):
        save(step, f"run/step-{step}.pt")
    assert run("run", "--from", 20, "--at-least", 10, "--out", "o.pt") == 0
    said = capsys.readouterr().out
    assert "  0.5000  step 20  run/step-20.pt\n  0.5000  step 30  run/step-30.pt\n" in said
    assert "left out: 1 not from 20 by the steps in their names\n" in said
    assert "left out: 1 less than 10 before the next one taken\n" in said


CONFLICTS = {
    "names and files disagree": (
        [("step-1.ckpt", 20), ("step-2.ckpt", 10)],
        "the steps in their names and the global_step in the files disagree",
    ),
    "two have the same step": (
        [("last.ckpt", 20), ("a.ckpt", 20), ("b.ckpt", 10)],
        "20 for .*a.ckpt and .*last.ckpt",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_steps_that_do_not_tell_the_order_are_refused_with_the_way_out(case):
    files, reason = CONFLICTS[case]
    for name, step in files:
        save(step, f"run/{name}", global_step=step)
    # Also without an option that needs order: the user has not named these files.
    for options in ({}, {"last": len(files)}):
        with pytest.raises(CheckpointError, match=reason) as refusal:
            average_checkpoints(["run"], key="model", **options)
        assert "--order given" in str(refusal.value)
    average_checkpoints([f"run/{name}" for name, _ in files], key="model", order="given", last=1)


def test_what_a_folder_holds_twice_by_its_steps_counts_once(capsys):
    # As Lightning's ModelCheckpoint(save_last=True) leaves them, in files that are not the same.
    for name, step in (("epoch=9-step=90", 90), ("epoch=10-step=100", 100), ("last", 100)):
        save(step, f"run/{name}.ckpt", global_step=step, name=name)
    assert run("run", "--key", "model", "--out", "o.pt", "--last", 2) == 0
    said = capsys.readouterr().out
    assert "left out: run/last.ckpt, which says the same step as run/epoch=10-step=100.ckpt" in said
    assert torch.load("o.pt")["model"]["w"][0, 0] == 95
    assert run("run", "--key", "model", "--out", "p.pt", "--last", 3) == 1
    assert "3 checkpoints are needed, but 2 given" in capsys.readouterr().err
    # What is named counts, and that it is odd is said.
    assert (
        run("run/last.ckpt", "run/epoch=10-step=100.ckpt", "--key", "model", "--out", "q.pt") == 0
    )
    assert "-step=100.ckpt, and each counts" in capsys.readouterr().out
    # What was written at a step of its own is a checkpoint.
    save(120, "run/last.ckpt", global_step=120)
    average_checkpoints(["run"], "r.pt", key="model", last=2)
    assert torch.load("r.pt")["model"]["w"][0, 0] == 110


def test_steps_of_names_and_files_that_differ_are_said():
    for step in (1, 2):
        save(step, f"run/step-{step}.pt", global_step=step * 1000)
    notes = average_checkpoints(["run"], "o.pt", key="model").notes
    assert any(
        "global_step in the files differ, as 1 and 1000 of run/step-1.pt" in x for x in notes
    )


def test_a_range_the_wrong_way_round_is_refused():
    save(1, "step-1.pt")
    with pytest.raises(ValueError, match="from_step 50 is after to_step 20"):
        average_checkpoints(["step-1.pt"], from_step=50, to_step=20)


def test_sources_of_equal_names_are_told_apart_by_their_folders():
    for name in ("a", "b"):
        save(ord(name), f"runs/{name}/model.pt")
    average_checkpoints(["runs/a/model.pt", "runs/b/model.pt"], "o.pt")
    Path("runs").rename("moved")
    assert not verify_average("o.pt", sources="moved").differences


def test_a_range_without_steps_is_refused():
    save(1, "a.pt")
    save(2, "b.pt")
    with pytest.raises(CheckpointError, match="the steps of the checkpoints are not known"):
        average_checkpoints(["a.pt", "b.pt"], from_step=1)


# Folders


def test_a_folder_is_taken_for_its_checkpoints_and_not_for_what_lies_beside(capsys):
    for step in (9, 10):
        save(step, f"run/step-{step}.pt")
    for companion in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        Path("run", companion).write_text("no weights")
    Path("run/log.txt").write_text("")
    assert run("run", "--out", "run/average.safetensors") == 0
    assert run("run", "--out", "run/again.pt") == 0
    said = capsys.readouterr().out
    assert "left out: run/average.safetensors, which is an average" in said
    for name in ("run/average.safetensors", "run/again.pt"):
        held = load_file(name) if name.endswith("s") else torch.load(name)
        assert held["w"][0, 0] == 9.5


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["model.safetensors", "checkpoint-5/model.safetensors"], "is a checkpoint and holds oth"),
        (["model-00001-of-00002.safetensors"], "is a shard, and no index lies beside"),
        (["notes/model.pt"], "holds neither .* nor checkpoints"),
    ],
)
def test_folders_that_may_mean_several_things_are_refused(files, reason):
    for file in files:
        save(1, f"run/{file}")
    with pytest.raises(CheckpointError, match=reason):
        average_checkpoints(["run"])


# torch.distributed.checkpoint


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(ROOT / "tests" / "support" / "rank_folders.py", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_folders_of_many_ranks_are_averaged(of_two_ranks, capsys, small_batches):
    whole = []
    for name in "dab":
        dcp_to_torch_save(of_two_ranks / name, f"{name}.pt")
        whole.append(torch.load(f"{name}.pt")["model"])
    assert run(of_two_ranks, "--key", "model", "--out", "o.pt") == 0
    assert run(of_two_ranks, "--key", "model", "--out", "o") == 0
    said = capsys.readouterr().out
    assert "step 10" in said
    assert "left out beside model: optim, step" in said
    dcp_to_torch_save("o", "folder.pt")
    for averaged in (torch.load("o.pt"), torch.load("folder.pt")["model"]):
        assert averaged.keys() == whole[0].keys()
        for name, value in averaged.items():
            mean = sum(state[name].double() for state in whole) / 3
            expected = mean if value.is_floating_point() else whole[-1][name]
            torch.testing.assert_close(value.double(), expected.double())
    for out in ("o", "o.pt"):
        assert not verify_average(out).differences


@pytest.fixture
def small_batches(monkeypatch):
    """Pieces and parts of a few elements, so that small tensors are cut."""
    monkeypatch.setattr(mean_of_files, "BATCH_BYTES", 32)
    monkeypatch.setattr(mean_of_files, "BATCHES", 1 << 20)
    monkeypatch.setattr(write_distributed, "BATCH_BYTES", 64)
    monkeypatch.setattr(write_distributed, "PARTS", 1 << 20)


def test_a_dcp_folder_is_loaded_by_its_library_after_averaging(small_batches):
    for step in (1, 3):
        state = {"a": torch.randn(5, 3) + step, "b": torch.ones(()), "c": torch.empty(0, 2)}
        save_dcp(step, f"step-{step}", extra=state)
    done = average_checkpoints(["step-1", "step-3"], "o", key="extra")
    assert len([*Path("o").glob("*.distcp")]) > 1
    assert done.notes == ("left out beside extra: model",)
    expected = average_checkpoints(["step-1", "step-3"], key="extra")
    loaded = {name: torch.zeros_like(value) for name, value in expected.items()}
    checkpoint.load({"extra": loaded}, checkpoint_id="o", no_dist=True)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


class Evil:
    def __reduce__(self):
        return Path.mkdir, (Path("made-by-an-index"),)


def test_an_index_that_would_execute_something_is_refused():
    save_dcp(1, "dcp")
    index = pickle.loads(Path("dcp/.metadata").read_bytes())
    index.planner_data = Evil()
    Path("dcp/.metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"it holds pathlib\.\w+, which no index needs|mkdir"):
        average_checkpoints(["dcp"], key="model")
    assert not Path("made-by-an-index").exists()


@pytest.mark.parametrize("place", [".metadata", "__0_0.distcp"])
def test_a_damaged_dcp_folder_is_one_line(place, capsys):
    for step in (1, 2, 3):
        save_dcp(step, f"run/{step}")
    damaged = Path("run/2", place)
    data = damaged.read_bytes()
    before = sorted(Path().rglob("*"))
    for cut in (0, len(data) // 2, len(data) - 1):
        damaged.write_bytes(data[:cut])
        assert run("run", "--key", "model", "--out", "o") == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert "run/2" in said.err
        assert sorted(Path().rglob("*")) == before


def test_a_dcp_folder_says_which_key_is_meant():
    save_dcp(1, "dcp", optim={"m": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"dcp: it nests .* as key \(model, optim\)"):
        average_checkpoints(["dcp"])
    with pytest.raises(CheckpointError, match=r"key 'modle': no such key in model, optim"):
        average_checkpoints(["dcp"], key="modle")


# Prefixes, dtypes, adapters


def save_named(names, path, value=1.0, dtype=torch.float32):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.full((4,), value, dtype=dtype) for name in names}, path)


def test_prefixes_are_offered_and_stripped():
    save_named(["a", "b"], "1.safetensors", 1.0)
    save_named(["module._orig_mod.a", "module._orig_mod.b"], "2.safetensors", 3.0)
    paths = ["1.safetensors", "2.safetensors"]
    with pytest.raises(CheckpointError, match=r"--strip-prefix module. --strip-prefix _orig_mod."):
        average_checkpoints(paths)
    assert (
        run(*paths, "--strip-prefix", "module.", "--strip-prefix", "_orig_mod.", "--out", "o.pt")
        == 0
    )
    averaged = torch.load("o.pt")
    assert {*averaged} == {"a", "b"}
    assert torch.equal(averaged["a"], torch.full((4,), 2.0))
    assert not verify_average("o.pt").differences
    with pytest.raises(
        CheckpointError, match=r"no name begins with 'modul.', as .*all begin with 'module.'"
    ):
        average_checkpoints(["2.safetensors"], strip_prefix=["modul."])
    save_named(["a", "module.a"], "3.safetensors")
    with pytest.raises(CheckpointError, match=r"'a' and 'module\.a' are both 'a' without"):
        average_checkpoints(["3.safetensors"], strip_prefix=["module."])


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_another_dtype_is_rounded_once(source, dtype):
    torch.manual_seed(0)
    states = [{"w": torch.randn(1000).to(source), "n": torch.tensor(i)} for i in range(2)]
    for i, state in enumerate(states):
        save_file(state, f"{i}.safetensors")
    averaged = average_checkpoints(["0.safetensors", "1.safetensors"], dtype=dtype)
    wide = torch.promote_types(source, torch.float32)
    mean = (states[0]["w"].double() + states[1]["w"].double()) / 2
    wanted = getattr(torch, dtype)
    assert averaged["w"].dtype == wanted
    assert averaged["n"].dtype == torch.int64
    bound = torch.finfo(wanted).eps / 2 * mean.abs() + 4 * torch.finfo(wide).eps + 6e-8
    assert ((averaged["w"].double() - mean).abs() <= bound).all()


def test_what_does_not_fit_a_dtype_is_refused():
    save_named(["a"], "1.safetensors", 70000.0)
    with pytest.raises(CheckpointError, match=r"mean of 'a' does not fit into torch\.float16"):
        average_checkpoints(["1.safetensors"], dtype="float16")


def test_adapters_of_other_scales_are_refused():
    for i, alpha in enumerate((8, 16)):
        save_named(["q.lora_A.weight", "q.lora_B.weight"], f"{i}/adapter_model.safetensors")
        Path(f"{i}/adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": alpha}))
    with pytest.raises(
        CheckpointError, match=r"differ in lora_alpha of adapter_config\.json.*: merge"
    ):
        average_checkpoints(["0", "1"])
    Path("0/adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16, "x": 1}))
    done = average_checkpoints(["0", "1"], "o")
    assert any("not the mean of their products" in note for note in done.notes)
    assert any("differ in x of adapter_config.json" in note for note in done.notes)
    assert json.loads(Path("o/adapter_config.json").read_text())["lora_alpha"] == 16


# Hugging Face


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["20KB", "5GB"])
def test_from_pretrained_loads_the_average(shard, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=100, n_positions=32)
    states = []
    for step in (4, 8):
        model = transformers.GPT2LMHeadModel(config)
        model.save_pretrained(f"run/checkpoint-{step}", max_shard_size=shard)
        Path(f"run/checkpoint-{step}/vocab.txt").write_text("a\nb\n")
        Path(f"run/checkpoint-{step}/optimizer.pt").write_text("not copied")
        states.append(model.state_dict())
    assert run("run", "--out", "o", "--dtype", "bfloat16") == 0
    assert "config.json now says dtype bfloat16" in capsys.readouterr().out
    loaded = transformers.AutoModelForCausalLM.from_pretrained("o")
    assert loaded.dtype == torch.bfloat16
    for name, value in loaded.state_dict().items():
        mean = (states[0][name] + states[1][name]) / 2
        torch.testing.assert_close(value, mean.bfloat16())
    assert Path("o/vocab.txt").exists()
    assert not Path("o/optimizer.pt").exists()
    assert not verify_average("o").differences


# Overwriting


def test_nothing_is_overwritten_untold_and_no_folder_but_an_average(capsys):
    for step in (1, 2):
        save(step, f"run/{step}/pytorch_model.bin")
    for out in ("o.pt", "o"):
        assert run("run", "--out", out) == 0
        assert run("run", "--out", out) == 1
        assert f"{out} exists: say --overwrite" in capsys.readouterr().err
        assert run("run", "--out", out, "--overwrite", "--last", 1) == 0
        assert "0.5" not in capsys.readouterr().out
    assert torch.load("o/pytorch_model.bin")["n"] == 2
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("x")
    for out, reason in (("mine", "was not written by lawa_opt"), ("run", "holds the input")):
        assert run("run/1", "--out", out, "--overwrite") == 1
        assert reason in capsys.readouterr().err
    assert Path("mine/thesis.tex").read_text() == "x"
    assert Path("run/1/pytorch_model.bin").exists()


def test_a_folder_that_cannot_be_finished_leaves_what_was_there(monkeypatch, capsys):
    for step in (1, 2):
        save(step, f"run/{step}/pytorch_model.bin")
    assert run("run", "--out", "o") == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    Path("run/2/config.json").write_text("{}")
    before[Path("run/2/config.json")] = b"{}"
    capsys.readouterr()
    assert run("run", "--out", "o", "--overwrite") == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "No space left on device: 'o'" in said.err
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def save_run_of(layout):
    for step in (1, 2):
        if layout == "hf":
            save(step, f"run/{step}/pytorch_model.bin")
        else:
            save_dcp(step, f"run/{step}")


def contents():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", ["hf", "dcp"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_folder_that_was_there(
    layout, number, monkeypatch, small_batches, capsys
):
    save_run_of(layout)
    options = () if layout == "hf" else ("--key", "model")
    assert run("run", "--out", "o", *options) == 0
    before, seen = contents(), []

    def interrupted(*args, progress, **others):
        def interrupt(done, total):
            seen.append(sorted(Path().iterdir()))
            signal.raise_signal(number)

        average_checkpoints(*args, progress=interrupt, **others)

    monkeypatch.setattr("lawa_opt.cli.average.average_checkpoints", interrupted)
    try:
        code = run("run", "--out", "o", "--overwrite", *options)
    except SystemExit as end:
        code = end.code
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert len(seen[0]) == 3  # run, o, and what was being written
    assert contents() == before
    assert sorted(map(str, Path().iterdir())) == ["o", "run"]


LIMITED = """
import resource, sys
from lawa_opt.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
layout, *options = sys.argv[1:]
sys.exit(main(["average", layout, "--out", f"{layout}-out", "--overwrite", *options]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["hf", "dcp"])
def test_a_disk_that_is_full_leaves_the_folder_that_was_there(layout):
    pytest.importorskip("resource")
    state = {"w": torch.ones(100_000)}
    options = []
    if layout == "hf":
        for step in (1, 2):
            Path(f"hf/{step}").mkdir(parents=True)
            save_file(state, f"hf/{step}/model.safetensors")
    else:
        options = ["--key", "model"]
        for step in (1, 2):
            checkpoint.save({"model": state}, checkpoint_id=f"dcp/{step}", no_dist=True)
    assert main(["average", layout, "--out", f"{layout}-out", *options]) == 0
    before = contents()
    command = [sys.executable, "-c", LIMITED, layout, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "File too large" in done.stderr
    assert contents() == before
    assert sorted(map(str, Path().iterdir())) == [layout, f"{layout}-out"]


# Provenance


@pytest.mark.parametrize("out", ["o.pt", "o.ckpt", "o.safetensors", "o"])
def test_an_average_is_verified_bit_for_bit_or_says_where_it_differs(out, capsys):
    key = ["--key", "model"] if out == "o.ckpt" else []
    for step in (1, 2, 4):
        path = f"run/step-{step}/pytorch_model.bin"
        save(step, path, **({"epoch": step} if key else {}))
    extra = ["--weights", "1-sqrt"]
    inputs = ["run"] if not key else [f"run/step-{step}/pytorch_model.bin" for step in (1, 2, 4)]
    assert run(*inputs, *key, *extra, "--out", out) == 0
    assert main(["verify", out]) == 0
    assert "o" in capsys.readouterr().out.splitlines()[-1]
    # It goes along with its sources, and apart from them says where it looks.
    Path("elsewhere").mkdir()
    shutil.move(out, "elsewhere")
    moved = f"elsewhere/{out}"
    assert main(["verify", moved]) == 1
    assert "--sources FOLDER" in capsys.readouterr().err
    if not key:
        assert main(["verify", moved, "--sources", "run"]) == 0
    shutil.move("run", "elsewhere/run")
    assert main(["verify", moved]) == 0
    # One bit of the average.
    file = Path(moved) / "pytorch_model.bin" if out == "o" else Path(moved)
    good = file.read_bytes()
    held = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    value = (held["model"] if key else held)["w"].numpy().tobytes()
    bad = bytearray(value)
    bad[9] ^= 1
    assert good.count(value) == 1
    file.write_bytes(good.replace(value, bytes(bad)))
    capsys.readouterr()
    assert main(["verify", moved]) == 1
    said = capsys.readouterr().out
    assert "NOT the average" in said
    assert said.splitlines()[1].startswith("'w' differs: 1 of 6 elements seen, first 2: ")
    file.write_bytes(good)
    # A source that was written anew.
    save(5, "elsewhere/run/step-2/pytorch_model.bin", **({"epoch": 2} if key else {}))
    assert main(["verify", moved]) == 1
    said = capsys.readouterr().out
    assert "step-2" in said
    assert "is not what it was (SHA-256)" in said


def test_what_an_average_says_is_its_sources_and_how():
    for step in (1, 2):
        save(step, f"step-{step}.pt")
    average_checkpoints(["step-2.pt", "step-1.pt"], "o.pt", weights="ema:0.5")
    said = json.loads(torch.load("o.pt").lawa_opt)
    assert [(each["path"], each["step"], each["weight"]) for each in said["sources"]] == [
        ("step-1.pt", 1, 0.25),
        ("step-2.pt", 2, 0.75),
    ]
    digest = hashlib.sha256(Path("step-2.pt").read_bytes()).hexdigest()
    assert said["sources"][1]["sha256"] == {"step-2.pt": digest}
    assert said["torch"] == torch.__version__
    # And a flat state dict loads as before.
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.zeros(3, 2))
    module.register_buffer("n", torch.tensor(0))
    module.load_state_dict(torch.load("o.pt"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"sources": [{}]}', '{"sources": [1]}', "9" * 5000]
)
def test_what_is_no_average_is_refused_in_one_line(text, capsys):
    save(1, "x.pt")
    save_file({"w": torch.ones(2)}, "y.safetensors", {"lawa_opt": text})
    Path("z").mkdir()
    save(1, "z/model.pt")
    for out in ("x.pt", "y.safetensors", "z", "missing"):
        assert main(["verify", out]) == 1
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert out in said.err
