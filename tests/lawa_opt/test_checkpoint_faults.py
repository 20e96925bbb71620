"""Whatever `average` is given: the right output, or one line and nothing else."""

import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lawa_opt.__main__ import main

STATE = {
    "w": torch.arange(12.0).reshape(3, 4),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "steps": torch.tensor(3),
    "transposed": torch.arange(20.0).reshape(4, 5).t(),
    "empty": torch.empty(0, 3),
}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def contiguous(state):
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def average(*arguments):
    """The exit code, and what it says on each stream; never a traceback, never torch's advice."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["average", *map(str, arguments), "--overwrite"])
    said = err.getvalue()
    assert code in (0, 1, 2), said
    assert said.count("\n") == (code != 0), said
    assert "weights_only" not in said
    assert "safe_globals" not in said
    return code, out.getvalue(), said


def refused(*arguments):
    """The one line of a refusal, before which nothing was written."""
    before = sorted(Path().rglob("*"))
    code, out, said = average(*arguments)
    assert code != 0, out
    assert out == ""
    assert sorted(Path().rglob("*")) == before
    return said


def load(path):
    return load_file(path) if Path(path).suffix == ".safetensors" else torch.load(path)


# What is no file of weights


def irregular(kind, path):
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.timeout(60)  # to open a FIFO waits for its writer
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.json"])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(kind, name):
    torch.save(STATE, "good.pt")
    irregular(kind, Path(name))
    said = refused("good.pt", name, "--out", "o.pt")
    assert f"{name} " in said
    assert "no regular file" in said or kind == "folder"
    Path("index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    assert f"{name} cannot be read: it is no regular file" in refused("index.json", "--out", "o.pt")
    if name != "x.json":
        assert f"{name} is a folder, FIFO" in refused("good.pt", "--out", name)


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ("../a.safetensors", "beside their index"),
        ("/etc/passwd", "beside their index"),
        ("sub/a.safetensors", "beside their index"),
        ("..", "beside their index"),
        (".", "beside their index"),
        ("", "beside their index"),
        (3, "beside their index"),
        (None, "beside their index"),
        ({"a": 1}, "beside their index"),
        ("a\0b", "null byte"),
        ("\x1b[2J", r"\x1b[2J cannot be read: No such file"),
        ("\ud800", "cannot be read"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_shards_lie_beside_their_index(shard, reason):
    Path("sub").mkdir()
    for place in ("a.safetensors", "sub/a.safetensors"):
        save_file({"a": torch.ones(2)}, place)
    Path("sub/i.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert reason in refused("sub/i.json", "--out", "o.pt")


NO_INDEX = ["", "{", "null", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', "\ufeff{}"]
NO_INDEX += ["[" * 100_000, '{"weight_map": null}', '{"weight_map": ' + "9" * 5000 + "}"]


@pytest.mark.parametrize("text", NO_INDEX, ids=lambda text: text[:20])
def test_an_index_that_is_none_is_refused(text):
    Path("i.json").write_text(text)
    assert "i.json cannot be read: " in refused("i.json", "--out", "o.safetensors")


# What no tensor is, or no file can hold


def refused_state(state, out="o.pt"):
    torch.save(state, "x.pt")
    return refused("x.pt", "--out", out)


@pytest.mark.parametrize("size", [10**10, 10**13])
def test_a_small_file_that_claims_a_large_tensor_is_refused(size):
    large = torch.ones(1).expand(size)
    for out in ("o.pt", "o.safetensors"):
        assert f"tensors claim {4 * size}: 'w' of" in refused_state({"w": large}, out)
    many = {f"w{i}": torch.ones(1).expand(size // 100, 1) for i in range(100)}
    assert "repeats what is stored" in refused_state(many)


def test_a_tensor_that_is_expanded_a_little_is_averaged():
    torch.save({"w": torch.ones(1).expand(1000), "tied": STATE["w"], "w2": STATE["w"]}, "x.pt")
    for out in ("o.pt", "o.safetensors"):
        assert average("x.pt", "--out", out)[0] == 0
        assert torch.equal(load(out)["w"], torch.ones(1000))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("__metadata__", "cannot hold '__metadata__'"),
        (0, "cannot hold 0"),
        (("a", 1), "cannot hold ('a', 1)"),
        (None, "cannot hold None"),
        (1.5, "cannot hold 1.5"),
        ("\ud800", r"cannot hold '\ud800'"),
    ],
)
def test_names_that_safetensors_would_not_give_back_are_refused(name, said):
    state = {name: torch.ones(3), "x": torch.ones(2)}
    assert said in refused_state(state, "o.safetensors")
    assert average("x.pt", "--out", "o.pt")[0] == 0
    assert torch.load("o.pt").keys() == state.keys()


@pytest.mark.slow
def test_a_header_that_safetensors_would_not_read_takes_no_name():
    state = {letter * 51_000_000: torch.ones(1) for letter in "ab"}
    assert "the average is no safetensors file: " in refused_state(state, "o.safetensors")


def test_a_safetensors_file_without_tensors_is_refused():
    save_file({}, "x.safetensors")
    assert "x.safetensors holds no tensors" in refused("x.safetensors", "--out", "o.safetensors")


def test_names_of_several_types_are_told_apart():
    torch.save({0: torch.ones(1), "x": torch.ones(1)}, "1.pt")
    torch.save(
        {0: torch.ones(1), "x": torch.ones(1), ("a", 1): torch.ones(1), 2: torch.ones(1)}, "2.pt"
    )
    assert "1.pt lacks ('a', 1), which 2.pt has" in refused("1.pt", "2.pt", "--out", "o.pt")


def test_a_name_as_long_as_its_file_does_not_fill_the_screen():
    torch.save({"x": torch.ones(1), "y" * 100_000: torch.ones(1)}, "1.pt")
    torch.save({"x": torch.ones(1)}, "2.pt")
    said = refused("1.pt", "2.pt", "--out", "o.pt")
    assert said.startswith("2.pt lacks 'yyy")
    assert said.endswith("yyy', which 1.pt has\n")
    assert len(said) < 3000


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_pickle_protocols_are_refused_or_read(protocol):
    torch.save(STATE, "x.pt", pickle_protocol=protocol)
    code, _, said = average("x.pt", "--out", "o.pt")
    assert code == 0 or "torch.save it again" in said


def test_torchscript_is_refused_without_advice_to_run_it():
    with zipfile.ZipFile("x.pt", "w") as archive:
        archive.writestr("x/data.pkl", "")
        archive.writestr("x/constants.pkl", "")
    assert "TorchScript" in refused("x.pt", "--out", "o.pt")


# Mutations


def mutated(data, edits):
    data = bytearray(data)
    for place, kind, new in edits:
        at = int(place * len(data))
        if kind == "replace":
            data[at : at + len(new)] = new
        elif kind == "insert":
            data[at:at] = new
        else:
            del data[at : at + len(new) ** 2]
    return bytes(data)


MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EDITS = st.lists(
    st.tuples(
        # Half of them in the first bytes, where headers are.
        st.floats(0, 0.999) | st.floats(0, 0.05),
        st.sampled_from(["replace", "insert", "delete"]),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=3,
)


def files(state):
    """Bytes of a torch file and of a safetensors file; of the first, its pickle can be edited."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    save_file(contiguous(state), "whole.safetensors", metadata={"step": "3"})
    return {".pt": buffer.getvalue(), ".safetensors": Path("whole.safetensors").read_bytes()}


def with_pickle(data, edits):
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            content = source.read(entry)
            is_pickle = entry.filename.endswith("data.pkl")
            archive.writestr(entry.filename, mutated(content, edits) if is_pickle else content)
    return target.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@MANY
@given(
    kind=st.sampled_from([".pt", ".safetensors", "pickle"]),
    edits=EDITS,
    out=st.sampled_from(["o.pt", "o.safetensors"]),
)
def test_a_mutated_file_gives_its_own_weights_or_one_line(kind, edits, out):
    path = Path(f"x{'.pt' if kind == 'pickle' else kind}")
    data = files(STATE)[path.suffix]
    path.write_bytes(with_pickle(data, edits) if kind == "pickle" else mutated(data, edits))
    Path(out).unlink(missing_ok=True)
    code, _, _ = average(path, "--out", out)
    assert Path(out).exists() == (code == 0)
    if code == 0:
        # Read in the ordinary way, without a mapping.
        expected = torch.load(path, map_location="cpu") if path.suffix == ".pt" else load_file(path)
        averaged = load(out)
        assert averaged.keys() == expected.keys()
        for name, tensor in expected.items():
            assert averaged[name].dtype == tensor.dtype
            assert torch.equal(bits(averaged[name]), bits(tensor)), name


def bits(tensor):
    """Numbers with all NaNs the same, for rounding changes their payload."""
    return tensor.nan_to_num() if tensor.is_floating_point() else tensor


VALUES = {
    "float32": lambda: torch.randn(3),
    "float64": lambda: torch.randn(2, 2, dtype=torch.float64),
    "bfloat16": lambda: torch.randn(4).bfloat16(),
    "scalar": lambda: torch.tensor(2.0),
    "empty": lambda: torch.empty(0, 2),
    "transposed": lambda: torch.randn(2, 3).t(),
    "expanded": lambda: torch.randn(1).expand(5),
    "parameter": lambda: torch.nn.Parameter(torch.randn(2)),
    "bool": lambda: torch.tensor([True, False]),
    "int64": lambda: torch.tensor([1, 2]),
    "uint16": lambda: torch.ones(2, dtype=torch.uint16),
    "complex64": lambda: torch.randn(2, dtype=torch.complex64),
    "conjugate": lambda: torch.randn(2, dtype=torch.complex64).conj(),
    "complex128": lambda: torch.randn(2, dtype=torch.complex128),
    "infinities": lambda: torch.tensor([float("inf"), float("nan"), -0.0]),
    "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "huge": lambda: torch.ones(1).expand(10**11),
    "meta": lambda: torch.ones(2, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "csr": lambda: torch.eye(2).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "none": lambda: None,
    "number": lambda: 3,
    "long": lambda: 10**5000,
    "text": lambda: "a\nb",
    "list": lambda: [torch.ones(2)],
    "dict": lambda: {"w": torch.ones(2)},
    "nothing": dict,
    "function": lambda: os.getcwd,
    "dtype": lambda: torch.float32,
    "storage": lambda: torch.ones(2).untyped_storage(),
}
NAMES = st.sampled_from(
    ["w", "a.b", "", "ü", "a\nb", "__metadata__", "\ud800", 0, 1.5, None, True, ("a", 1), b"x"]
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(nested tensors|Sparse CSR|quantize|TypedStorage)")
@MANY
@given(
    kinds=st.dictionaries(NAMES, st.sampled_from([*VALUES]), max_size=4),
    change=st.none() | st.tuples(NAMES, st.sampled_from([*VALUES])),
    out=st.sampled_from(["o.pt", "o.safetensors"]),
    key=st.sampled_from(["", "", "state", "a.b", "."]),
)
@example(kinds={"w": "huge"}, change=None, out="o.safetensors", key="")
@example(kinds={0: "float32", "w": "float32"}, change=None, out="o.safetensors", key="")
@example(kinds={"w": "float32", 0: "bool"}, change=(("a", 1), "float32"), out="o.pt", key="")
def test_any_state_dict_gives_its_mean_or_one_line(kinds, change, out, key):
    states = [{name: VALUES[kind]() for name, kind in kinds.items()} for _ in range(2)]
    if change:
        states[1][change[0]] = VALUES[change[1]]()
    for i, state in enumerate(states):
        torch.save({"state": state} if key == "state" else state, f"{i}.pt")
    Path(out).unlink(missing_ok=True)
    code, _, _ = average("0.pt", "1.pt", "--out", out, *(["--key", key] if key else []))
    assert Path(out).exists() == (code == 0)
    if code == 0:
        averaged = load(out)
        averaged = averaged["state"] if key == "state" and out == "o.pt" else averaged
        assert averaged.keys() == states[0].keys() == states[1].keys()
        for name, (a, b) in {n: (states[0][n], states[1][n]) for n in states[0]}.items():
            wide = a.is_floating_point() or a.is_complex()
            mean = (a / 2 + b / 2).detach() if wide else b
            torch.testing.assert_close(
                averaged[name].resolve_conj(), mean.resolve_conj(), equal_nan=True
            )


# Streams, locales, and what is left


def run(
    *arguments, script="from lawa_opt.__main__ import main; sys.exit(main())", env=(), **options
):
    command = [sys.executable, "-c", f"import sys; {script}", "average", *arguments]
    # Unbuffered, nothing would be left to write when the interpreter ends.
    surroundings = os.environ | {"PYTHONUNBUFFERED": ""} | dict(env)
    return subprocess.run(
        command, stderr=subprocess.PIPE, text=True, check=False, env=surroundings, **options
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_standard_output_is_told_in_one_line():
    torch.save(STATE, "x.pt")
    with Path("/dev/full").open("w") as full:
        done = run("x.pt", "--out", "o.pt", stdout=full)
        helped = run("--help", stdout=full)
    assert done.stderr == (
        "o.pt is written, but standard output cannot be: No space left on device\n"
    )
    assert done.returncode == helped.returncode == 1
    assert helped.stderr.count("\n") == 1
    assert "No space left on device" in helped.stderr
    assert torch.load("o.pt").keys() == STATE.keys()


@pytest.mark.slow
def test_a_locale_of_ascii_is_enough():
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    save_file(contiguous(STATE), "ü.safetensors")
    torch.save({"model": STATE, "größe": 3}, "x.pt")
    for arguments, said in (
        (["ü.safetensors", "--out", "ö.safetensors"], r"1.0000  \udcc3\udcbc.safetensors"),
        (["x.pt", "--key", "model", "--out", "o.pt"], r"beside model: gr\xf6\xdfe"),
    ):
        done = run(*arguments, stdout=subprocess.PIPE, env=ascii_only)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
    assert load_file("ö.safetensors").keys() == STATE.keys()


LIMITED = """
import resource
from lawa_opt import __main__
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (400 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(__main__.main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_that_runs_out_is_told_in_one_line():
    torch.save({"w": torch.ones(1, dtype=torch.uint8).expand(900 << 20)}, "x.pt")
    done = run("x.pt", "--out", "o.pt", script=LIMITED, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("memory ran out: ")
    assert done.stderr.count("\n") == 1


def test_an_empty_path_is_not_the_working_folder():
    save_file(contiguous(STATE), "model.safetensors")
    assert "a path is empty" in refused("", "--out", "o.pt")
    assert "must end in .safetensors" in refused(".", "--out", "")
    assert average(".", "--out", "o.pt")[0] == 0


def test_a_fault_of_our_own_is_told_in_one_line_that_says_where_its_traceback_is(
    monkeypatch, tmp_path, capsys
):
    def broken(*args, **options):
        raise KeyError("a\nname")

    monkeypatch.setattr("lawa_opt.cli.average.average_checkpoints", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["average", "x.pt", "--out", "o.pt"]) == 70
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("this is a fault of lawa-opt (KeyError: ")
    (kept,) = tmp_path.glob("lawa-opt-*.txt")
    assert said.err.rstrip().endswith(str(kept))
    assert "Traceback" in kept.read_text()
    assert 'raise KeyError("a\\nname")' in kept.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert main(["average", "x.pt", "--out", "o.pt"]) == 70
    assert "could not be kept" in capsys.readouterr().err
