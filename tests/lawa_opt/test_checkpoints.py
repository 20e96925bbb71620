import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lawa_opt import CheckpointError, average_checkpoints, running_mean
from lawa_opt.__main__ import main
from lawa_opt.averaging_files import mean as mean_of_files

FORMATS = ["safetensors", "pt"]


def save(state, path, **options):
    if path.suffix == ".safetensors":
        save_file(state, path, **options)
    else:
        torch.save(state, path, **options)
    return path


def load(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def run(seed, k=3, dtype=torch.float32):
    """State dicts of k snapshots with some structure: matrix, vector, scalar, empty, counters."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "matrix": torch.randn(5, 7, generator=generator).to(dtype),
            "vector": torch.randn(11, generator=generator).to(dtype),
            "scalar": torch.randn((), generator=generator).to(dtype),
            "empty": torch.empty(0, 3, dtype=dtype),
            "steps": torch.tensor(100 + i),
            "flags": torch.tensor([i % 2 == 0, True]),
        }
        for i in range(k)
    ]


def save_run(states, folder, suffix="safetensors"):
    return [save(state, folder / f"step{i}.{suffix}") for i, state in enumerate(states)]


def naive_mean(states, name, weights=None):
    weights = [1.0] * len(states) if weights is None else weights
    terms = [w * state[name].double() for w, state in zip(weights, states, strict=True)]
    return sum(terms) / sum(weights)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 4 elements and batches of 2 tiles, so that small tensors are cut and grouped."""
    monkeypatch.setattr(running_mean, "RUNNING_TILE", 4)
    monkeypatch.setattr(mean_of_files, "BATCH_BYTES", 32)


# The mean


@pytest.mark.slow
@pytest.mark.parametrize("out", FORMATS)
@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    tile=st.integers(1, 50),
    batch=st.integers(1, 400),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    weights=st.lists(st.just(0.0) | st.floats(0.01, 10), min_size=1, max_size=6).filter(any),
)
def test_the_mean_is_the_oracle_s_however_the_tensors_are_cut(
    tmp_path_factory, suffix, out, seed, tile, batch, dtype, weights
):
    folder = tmp_path_factory.mktemp("run")
    states = run(seed, len(weights), dtype)
    paths = save_run(states, folder, suffix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running_mean, "RUNNING_TILE", tile)
        patch.setattr(mean_of_files, "BATCH_BYTES", batch)
        average_checkpoints(paths, folder / f"out.{out}", weights=weights)
    averaged = load(folder / f"out.{out}")
    assert averaged.keys() == states[0].keys()
    for name in ("matrix", "vector", "scalar", "empty"):
        mean = naive_mean(states, name, weights)
        assert averaged[name].dtype == dtype
        assert averaged[name].shape == mean.shape
        # One rounding to the stored dtype, after one for each checkpoint in float32 or wider.
        stored, wide = torch.finfo(dtype), torch.finfo(torch.promote_types(dtype, torch.float32))
        largest = max(
            (state[name].abs().max().item() for state in states if mean.numel()), default=0
        )
        last = mean.abs() * stored.eps / 2 + stored.smallest_normal * stored.eps
        bound = last + len(states) * largest * wide.eps
        assert ((averaged[name].double() - mean).abs() <= bound).all()
    assert averaged["steps"] == states[-1]["steps"]
    assert torch.equal(averaged["flags"], states[-1]["flags"])


def test_a_float32_mean_is_within_1e_6(tmp_path):
    states = [{"w": 3 + torch.randn(100_000)} for _ in range(10)]
    averaged = average_checkpoints(save_run(states, tmp_path))["w"]
    mean = naive_mean(states, "w")
    assert ((averaged - mean).abs() / mean.abs().max()).max() <= 1e-6


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_the_same_in_all_comes_out_bit_for_bit(tmp_path, suffix):
    frozen = torch.randn(1000)
    states = [{"frozen": frozen, "w": torch.randn(5)} for _ in range(7)]
    paths = save_run(states, tmp_path, suffix)
    for options in ({}, {"weights": "1-sqrt"}, {"weights": "ema:7"}):
        averaged = average_checkpoints(paths, **options)
        assert torch.equal(averaged["frozen"], frozen)


def test_copies_of_one_file_average_to_the_very_bytes_of_that_file(tmp_path, small_tiles):
    state = {f"layer.{i}.ü": torch.randn(3, i) for i in range(12)}
    paths = [
        save(state, tmp_path / f"{i}.safetensors", metadata={"format": "pt"}) for i in range(3)
    ]
    average_checkpoints(paths, tmp_path / "out.safetensors")
    written, original = (
        (tmp_path / name).read_bytes() for name in ("out.safetensors", "0.safetensors")
    )
    # All but the header, which says what it was made of.
    size = int.from_bytes(original[:8], "little")
    assert written.endswith(original[8 + size :])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mask_of_infinities_stays(tmp_path, suffix):
    mask = torch.full((4, 4), -torch.inf).triu(1)
    states = [{"mask": mask, "w": torch.randn(5)} for _ in range(3)]
    averaged = average_checkpoints(save_run(states, tmp_path, suffix))
    assert torch.equal(averaged["mask"], mask)
    assert torch.allclose(averaged["w"].double(), naive_mean(states, "w"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((1.0, float("nan")), "1.* 'w' holds nan, so there is no mean"),
        ((float("nan"), float("nan")), "0.* 'w' holds nan"),
        ((float("inf"), 1.0), "0.* 'w' holds inf, so there is no mean"),
        ((-1.0, float("inf")), "1.* 'w' holds inf"),
        ((float("-inf"), float("inf")), "'w' holds (-inf|inf), so there is no mean"),
    ],
    ids=str,
)
def test_what_is_not_finite_is_refused_by_name(tmp_path, small_tiles, suffix, values, reason):
    states = [{"v": torch.ones(9), "w": torch.tensor([3.0] * 7 + [value])} for value in values]
    paths = save_run(states, tmp_path, suffix)
    before = sorted(tmp_path.iterdir())
    for out in (None, tmp_path / "o.pt", tmp_path / "o.safetensors"):
        with pytest.raises(CheckpointError, match=reason):
            average_checkpoints(paths, out)
    assert sorted(tmp_path.iterdir()) == before


def test_large_numbers_whose_sum_is_not_finite_have_a_mean(tmp_path):
    large = torch.full((100,), 3e38)
    assert torch.equal(average_checkpoints(save_run([{"w": large}] * 2, tmp_path))["w"], large)


def test_a_checkpoint_of_weight_zero_does_not_spoil_the_mean(tmp_path):
    values = [float("nan"), 1.0, float("inf"), 3.0]
    states = [{"w": torch.tensor([value]), "n": torch.tensor(i)} for i, value in enumerate(values)]
    paths = save_run(states, tmp_path)
    assert average_checkpoints(paths, weights=[0, 1, 0, 3])["w"] == 2.5
    # Integers are the newest's whatever it weighs.
    assert average_checkpoints(paths[1:3], weights=[1, 0])["n"] == 2


def test_complex_tensors_have_a_mean(tmp_path):
    states = [{"w": torch.randn(9, dtype=torch.complex64)} for _ in range(4)]
    averaged = average_checkpoints(save_run(states, tmp_path))["w"]
    mean = sum(state["w"].to(torch.complex128) for state in states) / 4
    assert torch.allclose(averaged.to(torch.complex128), mean, rtol=1e-6, atol=1e-6)


def test_strides_of_torch_tensors_do_not_matter(tmp_path, small_tiles):
    states = [{"w": torch.randn(6, 5).t(), "part": torch.randn(9, 9)[1:4, 2:8]} for _ in range(3)]
    averaged = average_checkpoints(save_run(states, tmp_path, "pt"))
    for name in ("w", "part"):
        assert torch.allclose(averaged[name].double(), naive_mean(states, name), atol=1e-6)


# Weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "cosin"}, "uniform, linear, 1-sqrt, cosine, ema:HALF_LIFE .*'cosin': No such"),
        ({"weights": "ema"}, "such as ema:500: 'ema'"),
        ({"weights": [1, 1]}, r"3 weights .* \[1.0, 1.0\]"),
        ({"weights": [1, -1, 1]}, r"3 weights .* \[1.0, -1.0, 1.0\]"),
        ({"weights": [1, float("nan"), 1]}, "nan"),
        ({"weights": [1, float("inf"), 1]}, "finite: .*inf"),
        ({"weights": [0, 0, 0]}, "above 0"),
        ({"last": 0}, "from 1: 0"),
        ({"out": "x.zip"}, "x.zip must end in .safetensors"),
    ],
)
def test_wrong_arguments_are_refused_before_any_file_is_read(options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        average_checkpoints(["missing"] * 3, **options)
    assert not isinstance(refusal.value, CheckpointError)
    with pytest.raises(ValueError, match="not one: 'missing'"):
        average_checkpoints("missing")


# What is read


def save_shards(state, folder):
    folder.mkdir()
    shards = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for shard in set(shards.values()):
        save({name: state[name] for name in state if shards[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    return folder


def test_every_kind_of_checkpoint_may_be_mixed(tmp_path, small_tiles):
    states = run(0, k=5)
    (tmp_path / "whole").mkdir()
    save(states[2], tmp_path / "whole" / "model.safetensors")
    paths = [
        save(states[0], tmp_path / "0.ckpt"),
        save(states[1], tmp_path / "1.safetensors"),
        tmp_path / "whole",
        save_shards(states[3], tmp_path / "shards"),
        save_shards(states[4], tmp_path / "more") / "model.safetensors.index.json",
    ]
    averaged = average_checkpoints(paths)
    assert list(averaged) == sorted(averaged, key=[*average_checkpoints(paths[-1:])].index)
    for name in ("matrix", "vector", "scalar"):
        assert torch.allclose(averaged[name].double(), naive_mean(states, name), atol=1e-6)
    assert averaged["steps"] == 104


def test_a_key_leads_to_the_state_dict(tmp_path):
    states = run(0)
    nested = [{"epoch": 3, "state_dict": {"model": state, "opt": {}}} for state in states]
    paths = save_run(nested, tmp_path, "pt")
    averaged = average_checkpoints(paths, key="state_dict.model")
    assert torch.allclose(averaged["matrix"].double(), naive_mean(states, "matrix"), atol=1e-6)


def test_the_last_given_are_taken(tmp_path):
    states = run(0, k=5)
    paths = save_run(states, tmp_path)
    averaged = average_checkpoints(iter(paths), last=2)
    assert torch.allclose(averaged["vector"].double(), naive_mean(states[3:], "vector"), atol=1e-6)
    with pytest.raises(CheckpointError, match="6 checkpoints are needed, but 5 given"):
        average_checkpoints(paths, last=6)
    with pytest.raises(CheckpointError, match="there is no checkpoint to take"):
        average_checkpoints([])


def test_names_tied_in_every_torch_file_stay_tied(tmp_path):
    states = [{"a": torch.randn(8), "b": torch.randn(8)} for _ in range(2)]
    for state in states:
        state["tied"] = state["a"]
    states[0]["once"] = states[0]["b"]
    states[1]["once"] = states[1]["b"].clone()
    paths = save_run(states, tmp_path, "pt")
    for suffix in FORMATS:
        average_checkpoints(paths, tmp_path / f"out.{suffix}")
        averaged = load(tmp_path / f"out.{suffix}")
        for name in averaged:
            assert torch.allclose(averaged[name].double(), naive_mean(states, name), atol=1e-6)
    averaged = torch.load(tmp_path / "out.pt")
    assert averaged["tied"].data_ptr() == averaged["a"].data_ptr()
    assert averaged["once"].data_ptr() != averaged["b"].data_ptr()


def test_safetensors_metadata_is_the_newest_s(tmp_path):
    for i in range(2):
        save({"w": torch.ones(2)}, tmp_path / f"{i}.safetensors", metadata={"step": str(i)})
    out = tmp_path / "out.safetensors"
    average_checkpoints([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], out)
    with safe_open(out, "pt") as opened:
        metadata = opened.metadata()
    said = json.loads(metadata.pop("lawa_opt"))
    assert [source["step"] for source in said["sources"]] == [0, 1]
    assert metadata == {"format": "pt", "step": "1"}


def test_every_dtype_is_written_as_the_library_reads_it(tmp_path):
    kinds = "float64 float32 float16 bfloat16 complex64 bool"
    signed = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    state = {name: torch.ones(3).to(getattr(torch, name)) for name in [*kinds.split(), *signed]}
    average_checkpoints([save(state, tmp_path / "all.pt")], tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert {name: tensor.dtype for name, tensor in written.items()} == {
        name: tensor.dtype for name, tensor in state.items()
    }
    assert all(torch.equal(written[name], state[name]) for name in state)
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        sizes = [state[name].itemsize for name in opened.offset_keys()]
    assert sizes == sorted(sizes, reverse=True)


# What is refused

GOOD = {"a": torch.ones(40), "b": torch.ones(2, 2)}


def truncated(path):
    path.write_bytes(path.read_bytes()[:-30])


def two(path, other):
    """A good checkpoint, and an unlike one of the same kind."""
    return [save(GOOD, path.with_name(f"good{path.suffix}")), save(other, path)]


def case_missing(path):
    return two(path, {"a": GOOD["a"]})


def case_extra(path):
    return two(path, GOOD | {"more": torch.ones(1)})


def case_shape(path):
    return two(path, GOOD | {"b": torch.ones(4)})


def case_dtype(path):
    return two(path, GOOD | {"b": torch.ones(2, 2, dtype=torch.float16)})


def case_truncated(path):
    paths = two(path, GOOD)
    truncated(paths[1])
    return paths


def case_garbage(path):
    paths = two(path, GOOD)
    paths[1].write_bytes(b"\x00\xff" * 500)
    return paths


def case_empty(path):
    paths = two(path, GOOD)
    paths[1].write_bytes(b"")
    return paths


def case_absent(path):
    paths = two(path, GOOD)
    paths[1].unlink()
    return paths


def case_quantised(path):
    return two(path, GOOD | {"b": torch.ones(2, 2).to(torch.float8_e4m3fn)})


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (case_missing, "lacks 'b'"),
        (case_extra, "lacks 'more'"),
        (case_shape, "shape of 'b' differs"),
        (case_dtype, "dtype of 'b' differs"),
        (case_truncated, "cannot be read: .+"),
        (case_garbage, "cannot be read: .+"),
        (case_empty, "cannot be read: .+"),
        (case_absent, "cannot be read: No such file"),
        (case_quantised, "'b' is quantised or .*: (F8_E4M3|torch.float8_e4m3fn)|dtype of 'b'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, suffix, case, reason):
    paths = case(tmp_path / f"bad.{suffix}")
    before = sorted(tmp_path.iterdir())
    for order in (paths, paths[::-1]):
        with pytest.raises(CheckpointError, match=reason) as refusal:
            average_checkpoints(order, tmp_path / f"out.{suffix}")
        assert str(paths[1]) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", FORMATS)
def test_quantised_weights_are_refused_even_when_all_are(tmp_path, suffix):
    path = save({"b": torch.ones(2).to(torch.float8_e5m2)}, tmp_path / f"q.{suffix}")
    with pytest.raises(CheckpointError, match=f"{path}: 'b' is quantised or .*8_(e5m2|E5M2)"):
        average_checkpoints([path, path])


class Unsafe:
    def __reduce__(self):
        return (os.mkdir, ("made-by-a-pickle",))


@pytest.mark.parametrize(
    ("state", "options", "reason"),
    [
        ({"model": GOOD}, {}, r"'model' is a dict: .* key='model' \(--key model\)"),
        (
            {"m": {"model": GOOD}},
            {"key": "m"},
            r"'model' is a dict: .* key='m.model' \(--key m.model\)",
        ),
        ({"model": GOOD}, {"key": "modle"}, "key 'modle': no 'modle' in model"),
        ({"model": GOOD}, {"key": "model.a.x"}, "key 'model.a.x': no 'x' in Tensor"),
        ({"model": GOOD}, {"key": "model.a"}, "no state dict at 'model.a': Tensor"),
        ([GOOD], {}, "no state dict: list"),
        ({}, {}, "no state dict: dict"),
        (GOOD | {"step": 3}, {}, "'step' is not a tensor but int: 3"),
        (GOOD | {"a": torch.eye(2).to_sparse()}, {}, "'a' is quantised or sparse: .*sparse_coo"),
        (GOOD | {"a": torch.ones(2, device="meta")}, {}, "'a' is on meta: it has no values"),
        (GOOD | {"x": Unsafe()}, {}, r"cannot be read: it holds \w+\.mkdir, .* executed: load it"),
        (GOOD | {"x": slice(3)}, {}, "cannot be read: it holds builtins.slice, which is no plain"),
    ],
)
# torch 2.11 says so of every sparse tensor that it reads.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_torch_files_that_hold_something_else_are_refused(
    tmp_path, monkeypatch, state, options, reason
):
    monkeypatch.chdir(tmp_path)
    path = save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=reason) as refusal:
        average_checkpoints([path], tmp_path / "out.pt", **options)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [*tmp_path.iterdir()] == [path]


def test_torch_s_old_format_is_refused_with_what_to_do(tmp_path):
    path = save(GOOD, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old\.pt cannot be read: .* torch.save it again"):
        average_checkpoints([path])


def test_folders_that_are_no_checkpoint_are_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CheckpointError, match="nothing holds neither model"):
        average_checkpoints([tmp_path / "nothing"])
    shards = save_shards(GOOD, tmp_path / "shards")
    with pytest.raises(CheckpointError, match="do not nest, so there is no key 'model'"):
        average_checkpoints([shards], key="model")
    index = shards / "model.safetensors.index.json"
    good = index.read_text()
    for text, reason in (
        ("{", "index.json cannot be read"),
        ("{}", "index.json cannot be read: .*weight_map"),
        (good.replace('"a"', '"z"'), "model-0.safetensors lacks 'z'"),
        (good.replace("model-1", "model-7"), "model-7.safetensors cannot be read: No such file"),
    ):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            average_checkpoints([shards])


def test_an_output_that_cannot_be_is_refused_before_anything_is_written(tmp_path):
    shards = save_shards(GOOD, tmp_path / "shards")
    (tmp_path / "link.safetensors").symlink_to(shards / "model-0.safetensors")
    plain = save(GOOD | {"c": torch.ones(2, dtype=torch.complex128)}, tmp_path / "plain.pt")
    (tmp_path / "folder.pt").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for paths, out, reason in (
        ([shards], tmp_path / "link.safetensors", "part of the input .*shards"),
        ([plain], plain, r"plain\.pt is part of the input"),
        ([plain], tmp_path / "folder.pt", "is a folder"),
        ([plain], tmp_path / "nowhere" / "out.pt", "nowhere.*does not exist"),
        ([plain], tmp_path / "out.safetensors", "cannot hold 'c', which is torch.complex128"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            average_checkpoints(paths, out)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# What is written


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path, small_tiles, suffix, monkeypatch
):
    paths = save_run(run(0), tmp_path, suffix)
    before = sorted(tmp_path.iterdir())

    def overwrite(done, total):
        save(run(1)[0], paths[0])

    with pytest.raises(CheckpointError, match=f"{paths[0]} changed while it was read"):
        average_checkpoints(paths, tmp_path / f"out.{suffix}", progress=overwrite)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing(
    tmp_path, monkeypatch, capsys, small_tiles, suffix, number
):
    paths = save_run(run(0), tmp_path, suffix)
    out = tmp_path / f"out.{suffix}"
    out.write_text("what was there")
    before = sorted(tmp_path.iterdir())
    seen = []

    def interrupted(*args, progress, **options):
        def interrupt(done, total):
            seen.extend(sorted(tmp_path.iterdir()))
            signal.raise_signal(number)

        average_checkpoints(*args, progress=interrupt, **options)

    monkeypatch.setattr("lawa_opt.cli.average.average_checkpoints", interrupted)
    code = main(["average", *map(str, paths), "--out", str(out), "--overwrite"])
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert len(seen) == len(before) + 1  # it was interrupted while a temporary file was there
    assert sorted(tmp_path.iterdir()) == before
    assert out.read_text() == "what was there"


LIMITED = """
import resource, sys
from lawa_opt.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
codes = [main(["average", sys.argv[1], "--out", out, "--overwrite"]) for out in sys.argv[2:]]
sys.exit(codes != [1, 1])
"""


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_nothing_and_says_so(tmp_path):
    pytest.importorskip("resource")
    path = save({"w": torch.ones(100_000)}, tmp_path / "w.pt")
    outs = [tmp_path / f"out.{suffix}" for suffix in FORMATS]
    for out in outs:
        out.write_text("what was there")
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-c", LIMITED, path, *outs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    for line, out in zip(lines, outs, strict=True):
        assert "File too large" in line
        assert str(out) in line
        assert out.read_text() == "what was there"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_output_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch, suffix):
    paths = save_run(run(0), tmp_path, suffix)
    out = tmp_path / f"out.{suffix}"
    out.write_text("what was there")
    synced = []

    def fsync(descriptor):
        assert out.read_text() == "what was there"
        synced.append(os.fstat(descriptor))

    monkeypatch.setattr(os, "fsync", fsync)
    average_checkpoints(paths, out, overwrite=True)
    assert [s.st_ino for s in synced] == [out.stat().st_ino]
    assert synced[0].st_size == out.stat().st_size
    assert load(out).keys() == load(paths[0]).keys()


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_the_output_can_be_read_by_whom_the_umask_lets(tmp_path):
    average_checkpoints(save_run(run(0), tmp_path), tmp_path / "out.safetensors")
    (tmp_path / "plain").write_text("")
    modes = {
        stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "out.safetensors")
    }
    assert len(modes) == 1


PEAK = """
import sys
from pathlib import Path
from lawa_opt import average_checkpoints
from safetensors import safe_open

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

average_checkpoints([sys.argv[1]])
Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
start = peak()
average_checkpoints(sys.argv[2:-1], sys.argv[-1])
print(peak() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_checkpoints_need_the_memory_of_about_one(tmp_path, suffix, dtype):
    first = save({"w": torch.ones(2)}, tmp_path / f"first.{suffix}")
    state = {
        f"w{i}": torch.ones(64_000_000 // 16 // dtype.itemsize, dtype=dtype) for i in range(16)
    }
    paths = save_run([state] * 4, tmp_path, suffix)
    command = [sys.executable, "-c", PEAK, first, *paths, tmp_path / f"out.{suffix}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1.3 * paths[0].stat().st_size


def test_progress_counts_the_bytes_of_one_checkpoint(tmp_path, small_tiles):
    states = run(0)
    seen = []
    average_checkpoints(save_run(states, tmp_path), progress=lambda *args: seen.append(args))
    total = sum(tensor.nbytes for tensor in states[0].values())
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


# The command and its extra


def test_the_command_does_what_the_function_does(tmp_path, capsys):
    nested = [{"state_dict": {"model": state}} for state in run(0, k=5)]
    paths = save_run(nested, tmp_path, "pt")
    out = tmp_path / "out.safetensors"
    options = ["--last", "4", "--key", "state_dict.model", "--weights", "ema:1"]
    assert main(["average", *map(str, paths), "--out", str(out), *options]) == 0
    expected = average_checkpoints(paths[1:], key="state_dict.model", weights="ema:1")
    written = load_file(out)
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    said = capsys.readouterr()
    assert said.err == ""
    shares = ("0.1250", "0.1250", "0.2500", "0.5000")
    assert said.out.splitlines() == [
        "averaged 4 checkpoint(s), in the order of the steps in their names, with these shares:",
        *(
            f"  {share}  step {step}  {path}"
            for step, share, path in zip(range(1, 5), shares, paths[1:], strict=True)
        ),
        f"written: {out}",
    ]
    assert main(["average", "--help"]) == 0
    assert "--last" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("", 2, "Missing command"),
        ("averag", 2, "averag"),
        ("average", 2, "INPUTS"),
        ("average x.pt", 2, "--out"),
        ("average x.pt --out o.pt --what", 2, "--what"),
        ("average x.pt --out o.pt --last 0", 2, "--last"),
        ("average x.pt --out o.zip", 2, "o.zip must end in"),
        ("average x.pt --out o.pt --weights cosin", 2, "cosin"),
        ("average x.pt --out o.pt --weights ema", 2, "ema:HALF_LIFE"),
        ("average x.pt --out o.pt", 1, "x.pt cannot be read: No such file"),
        ("average x.pt --out o.pt --last 2", 1, "2 checkpoints are needed, but 1 given"),
        ("average x.pt --out o.pt --last 1e3", 2, "--last"),
        (f"average x.pt --out o.pt --last {'9' * 5000}", 2, "--last"),
        ("average x.pt --out o.pt --last 999999999999", 1, "999999999999 checkpoints are needed"),
        ("average x.pt --out o.pt --order", 2, "--order"),
        ("average x.pt --out o.pt --order time", 2, "'time'"),
        ("average x.pt --out o.pt --weights ema:1e400", 2, "ema:1e400"),
        ("average x.pt --out o.pt --weights ema:nan", 2, "ema:nan"),
        ("average x.pt --out nowhere/o.pt", 1, "nowhere/o.pt lies in a folder that does not exist"),
        (f"average x.pt --out {'o' * 300}.pt", 1, "File name too long"),
        ("average x\x1b[2J.pt --out o.pt", 1, r"x\x1b[2J.pt cannot be read: No such file"),
        ("average /dev/zero --out o.pt", 1, "/dev/zero cannot be read: it is no regular file"),
        ("average . --out o.pt", 1, ". holds neither model.safetensors"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


WITHOUT = """
import sys
import lawa_opt
assert not {"safetensors", "typer", "rich"} & {*sys.modules}, "imported by lawa_opt"
sys.modules |= dict.fromkeys(["safetensors", "typer", "rich"])
assert set(lawa_opt.average_checkpoints([sys.argv[1]])) == {"w"}
try:
    lawa_opt.average_checkpoints([sys.argv[2]])
except ImportError as error:
    print(error)
import lawa_opt.__main__
"""


@pytest.mark.slow
def test_lawa_opt_needs_torch_alone_until_a_file_needs_more(tmp_path):
    paths = [
        save({"w": torch.ones(2)}, tmp_path / f"w.{suffix}") for suffix in ("pt", "safetensors")
    ]
    command = [sys.executable, "-c", WITHOUT, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "safetensors is missing: pip install 'lawa-opt[files]'\n"
    assert done.stderr == "typer is missing: pip install 'lawa-opt[files]'\n"
