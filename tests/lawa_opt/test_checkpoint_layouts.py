"""The layouts of checkpoints that other libraries write."""

import argparse
import dataclasses
import json
import pathlib
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from lawa_opt import CheckpointError, average_checkpoints
from lawa_opt.__main__ import main

STATE = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(state, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    (save_file if Path(path).suffix == ".safetensors" else torch.save)(state, path)
    return path


def save_index(shards, index):
    for shard, names in shards.items():
        save({name: STATE[name] for name in names}, Path(index).with_name(shard))
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    Path(index).write_text(json.dumps({"weight_map": weight_map}))
    return index


def assert_is_state(averaged):
    assert averaged.keys() == STATE.keys()
    assert all(torch.equal(averaged[name], STATE[name]) for name in STATE)


def test_shards_of_torch_files_are_read(capsys):
    shards = {"pytorch_model-1.bin": ["a"], "pytorch_model-2.bin": ["b"]}
    Path("hf").mkdir()
    index = save_index(shards, "hf/pytorch_model.bin.index.json")
    for given in (index, "hf"):
        assert main(["average", given, "--out", "o.safetensors", "--overwrite"]) == 0
        assert f"  1.0000  {index}\n" in capsys.readouterr().out
        assert_is_state(load_file("o.safetensors"))
    with pytest.raises(CheckpointError, match="shards do not nest, so there is no key 'a'"):
        average_checkpoints(["hf"], key="a")


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
    ],
)
def test_a_folder_s_one_file_of_weights_is_taken_and_named(name, capsys):
    save(STATE, f"folder/{name}")
    for other in ("optimizer.pt", "training_args.bin", "rng_state.pth"):
        Path("folder", other).write_text("not weights")
    assert main(["average", "folder", "--out", "o.pt"]) == 0
    assert f"  1.0000  folder/{name}\n" in capsys.readouterr().out
    assert_is_state(torch.load("o.pt"))


def test_of_several_files_of_weights_the_library_s_own_choice_is_taken_or_none():
    save(STATE, "hub/model.safetensors")
    save({"x": torch.ones(1)}, "hub/pytorch_model.bin")
    assert_is_state(average_checkpoints(["hub"]))
    save(STATE, "two/pytorch_model.bin")
    save(STATE, "two/adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"two holds pytorch_.* and adapter.*: give one of"):
        average_checkpoints(["two"])


def test_adapters_are_averaged_with_a_word_on_what_that_is(capsys):
    save({"q.lora_A.weight": torch.ones(2), "q.lora_B.weight": torch.ones(2)}, "adapter_model.bin")
    assert main(["average", ".", "--out", "o.pt"]) == 0
    assert "this is not the mean of their products" in capsys.readouterr().out


# Plain data beside the tensors


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


PLAIN = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("a/b"), nested=argparse.Namespace(x=[1])),
    "path": pathlib.Path("/x"),
    "pure": pathlib.PurePosixPath("y"),
    "other system's": pathlib.PureWindowsPath("c:\\y"),
    "text": numpy.str_("aé"),
    "bytes": numpy.bytes_(b"\x00\xff"),
    "flag": numpy.bool_(True),
    **{
        kind: getattr(numpy, kind)(3)
        for kind in ("float16", "float32", "float64", "int8", "int64", "uint16", "complex128")
    },
    "big-endian": numpy.array(3, dtype=">f8")[()],
    "matrix": numpy.arange(6.0).reshape(2, 3),
    "transposed": numpy.arange(6).reshape(2, 3).T,
    "none": numpy.empty((0, 2), dtype="f4"),
    "words": numpy.array(["a", "bé"]),
    "version": 3,
}


def test_configs_of_omegaconf_are_read_and_kept_as_they_are():
    omegaconf = pytest.importorskip("omegaconf", reason="omegaconf is not installed")
    config = omegaconf.OmegaConf.create(
        {"lr": 0.1, "list": [1, {"b": None, "c": True}], "again": "${lr}", "must": "???"}
    )
    for number in (1, 2):
        save({"model": STATE, "config": config}, f"step-{number}.pt")
    assert main(["average", ".", "--key", "model", "--out", "o.pt"]) == 0
    kept = torch.load("o.pt", weights_only=False)["config"]
    assert kept == config
    assert kept.again == 0.1


def test_a_config_of_a_class_of_somebodys_own_is_refused_by_its_name(capsys):
    omegaconf = pytest.importorskip("omegaconf", reason="omegaconf is not installed")
    save({"model": STATE, "config": omegaconf.OmegaConf.structured(Settings)}, "e.pt")
    assert main(["average", "e.pt", "--key", "model", "--out", "o.pt"]) == 1
    said = capsys.readouterr().err
    assert f"{__name__}.Settings, which is no plain data" in " ".join(said.split())
    assert "omegaconf" not in said


def test_plain_data_is_read_and_kept_from_the_newest(capsys):
    older = {"model": {"a": STATE["a"] + 2, "b": STATE["b"]}, "version": 2}
    save(older, "yolox9.pth")
    save(
        {"start_epoch": 300, "model": STATE, "optimizer": {"m": torch.ones(3)}} | PLAIN,
        "yolox10.pth",
    )
    paths = ["yolox10.pth", "yolox9.pth"]
    assert main(["average", *paths, "--key", "model", "--out", "o.pth"]) == 0
    names = ["start_epoch", "optimizer", *PLAIN]
    assert f"kept from yolox10.pth beside model: {', '.join(names)}\n" in capsys.readouterr().out
    kept = torch.load("o.pth", weights_only=False)
    assert [*kept] == ["start_epoch", "model", "optimizer", *PLAIN, "lawa_opt"]
    assert torch.equal(kept["model"]["a"], STATE["a"] + 1)
    assert torch.equal(kept["optimizer"]["m"], torch.ones(3))
    for name, value in PLAIN.items():
        assert type(kept[name]) is type(value), name
        numpy.testing.assert_array_equal(kept[name], value)
        assert getattr(kept[name], "dtype", None) == getattr(value, "dtype", None)
    # Without a place for them, the state dict is all.
    assert main(["average", *paths, "--key", "model", "--out", "o.safetensors"]) == 0
    assert "kept" not in capsys.readouterr().out
    assert load_file("o.safetensors").keys() == STATE.keys()


def test_entries_are_kept_at_each_level_of_a_key(capsys):
    save({"x": 1, "state": {"y": 2, "state": STATE}}, "e.pt")
    assert main(["average", "e.pt", "--key", "state.state", "--out", "o.pt"]) == 0
    assert "beside state.state: x, y\n" in capsys.readouterr().out
    kept = torch.load("o.pt")
    assert json.loads(kept.pop("lawa_opt"))["key"] == "state.state"
    assert_is_state(kept["state"].pop("state"))
    assert kept == {"x": 1, "state": {"y": 2}}


class Objects:
    """numpy's scalar of bytes that are said to be a pointer."""

    def __reduce__(self):
        return numpy._core.multiarray.scalar, (numpy.dtype("O"), b"\x01" * 8)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Objects(), "it holds numpy's '|O8': only numbers"),
        (numpy.datetime64("2024-01-01"), "it holds numpy's '<M8'"),
        (numpy.array([1, None]), "it holds numpy's '|O8'"),
        (numpy.zeros(2, dtype=[("x", "f4")]), "it holds numpy's '|V4'"),
        (numpy.random.default_rng(0), "it holds .*numpy.random.*, which is no plain data"),
        (torch.nn.ReLU(), "it holds torch.nn.modules.activation.ReLU, which is no plain data"),
        (pathlib.Path, "it holds pathlib.Path, which"),
        (Path.unlink, "it holds builtins.getattr, pathlib.Path, which"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_data_is_refused_by_name_and_without_a_call(value, reason):
    save({"model": STATE, "x": value}, "e.pt")
    with pytest.raises(CheckpointError, match=f"e.pt cannot be read: {reason}".replace("|", r"\|")):
        average_checkpoints(["e.pt"], key="model")


def test_what_a_user_has_allowed_stays_allowed():
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace, slice])
    try:
        save({"model": STATE, "args": argparse.Namespace(x=slice(3))}, "e.pt")
        assert_is_state(average_checkpoints(["e.pt"], key="model"))
        assert {argparse.Namespace, slice} <= {*torch.serialization.get_safe_globals()}
        assert torch.load("e.pt")["args"].x == slice(3)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The `srun` command is available")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
def test_a_lightning_checkpoint_loads_after_averaging(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):
        def __init__(self, width=3, where=pathlib.Path("x")):
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, 1)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    states = []
    for i in range(2):
        net = Net(width=5)
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
        )
        trainer.strategy.connect(net)
        trainer.save_checkpoint(f"epoch={i}.ckpt")
        states.append(net.state_dict())
    paths = ["epoch=0.ckpt", "epoch=1.ckpt"]
    with pytest.raises(CheckpointError, match=r"'epoch' is not .* key='state_dict'"):
        average_checkpoints(paths)
    assert main(["average", *paths, "--key", "state_dict", "--out", "a.ckpt"]) == 0
    averaged = Net.load_from_checkpoint("a.ckpt", weights_only=False)
    assert averaged.hparams["width"] == 5
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)


# What a mapped file would read wrongly


def rewritten(path, records=(), compression=zipfile.ZIP_STORED):
    """Write a torch file anew, with other bytes in some records."""
    with zipfile.ZipFile(path) as archive:
        held = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in held.items():
            archive.writestr(name, dict(records).get(name.partition("/")[2], data))


def test_a_compressed_torch_file_is_refused():
    save(STATE, "e.pt")
    rewritten("e.pt", compression=zipfile.ZIP_DEFLATED)
    assert_is_state(torch.load("e.pt"))  # torch reads it, but not mapped
    with pytest.raises(CheckpointError, match=r"it is compressed, .* torch.save it again"):
        average_checkpoints(["e.pt"])


def test_a_record_shorter_than_its_tensor_is_refused():
    save(STATE, "e.pt")
    rewritten("e.pt", {"data/0": b"\x00" * 8})
    with pytest.raises(CheckpointError, match="not of the sizes of its records"):
        average_checkpoints(["e.pt"])


def test_a_record_whose_own_header_is_damaged_is_refused():
    save(STATE, "e.pt")
    with zipfile.ZipFile("e.pt") as archive:
        at = archive.getinfo("e/data/1").header_offset
    data = bytearray(Path("e.pt").read_bytes())
    data[at] ^= 1
    Path("e.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="it is damaged, or in torch's old format"):
        average_checkpoints(["e.pt"])
