"""Averaging folders of Hugging Face checkpoints by command: ours, mergekit's, and a plain loop.

    python benchmarks/merge_commands.py [--mergekit /path/to/mergekit-yaml] [--k 10] [--mb 200]

Whole commands, with their start, on folders in the page cache; everyone writes one such folder, and
flushes it to the disk. mergekit asks for other versions of packages, so it is in an environment of
its own, which `--mergekit` names; where it is not given, it is left out and that is said. Ours
alone says what it was made of, by SHA-256 of all sources, so the loop runs once with that too. The
floor is `cat` of all bytes to nowhere and `cp` of one checkpoint. Peak memory is of the process,
mapped files in the page cache included, over the bytes of one checkpoint.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.progress import track
from rows import Limit, Row, finish, parser
from safetensors.torch import save_file

LOOP = """
import sys
from pathlib import Path
import shutil
from safetensors.torch import load_file, save_file
*folders, out = map(Path, sys.argv[1:])
total = load_file(folders[0] / "model.safetensors")
for folder in folders[1:]:
    for name, tensor in load_file(folder / "model.safetensors").items():
        total[name] += tensor
out.mkdir()
save_file({name: each / len(folders) for name, each in total.items()}, out / "model.safetensors")
shutil.copy(folders[-1] / "config.json", out)
"""
WITH_SHA256 = f"""{LOOP}
import hashlib
for folder in folders:
    with (folder / "model.safetensors").open("rb") as file:
        print(folder, hashlib.file_digest(file, "sha256").hexdigest())
"""
CONFIG = """{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
  "intermediate_size": 1376, "num_hidden_layers": %d, "num_attention_heads": 8,
  "num_key_value_heads": 8, "vocab_size": 8000, "tie_word_embeddings": false,
  "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "torch_dtype": "float32"
}"""


def llama(layers):
    """Random weights by the names that mergekit knows."""
    layer = {
        **{f"self_attn.{name}_proj.weight": (512, 512) for name in "qkvo"},
        "mlp.gate_proj.weight": (1376, 512),
        "mlp.up_proj.weight": (1376, 512),
        "mlp.down_proj.weight": (512, 1376),
        "input_layernorm.weight": (512,),
        "post_attention_layernorm.weight": (512,),
    }
    shapes = {"model.embed_tokens.weight": (8000, 512), "lm_head.weight": (8000, 512)}
    shapes["model.norm.weight"] = (512,)
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def make(folder, k, mb):
    layers = max(1, round((mb * 1e6 / 4 - 2 * 8000 * 512) / 3_163_136))
    for number in range(1, k + 1):
        made = folder / f"step-{number}00"
        made.mkdir()
        save_file(llama(layers), made / "model.safetensors", {"format": "pt"})
        (made / "config.json").write_text(CONFIG % layers)
    return [folder / f"step-{number}00" for number in range(1, k + 1)]


def commands(folder, folders, mergekit):
    """Each command, which leaves its average in the folder `out`."""
    files = [str(each / "model.safetensors") for each in folders]
    out = str(folder / "out")
    read, write = shlex.join(["cat", *files]), shlex.join(["cp", files[0], out])
    made = {
        "floor": ["sh", "-c", f"mkdir {shlex.quote(out)}; {read} >/dev/null; {write}"],
        "ours": [sys.executable, "-m", "lawa_opt", "average", *folders, "--out", out],
        "a plain loop": [sys.executable, "-c", LOOP, *folders, out],
        "a loop with SHA-256": [sys.executable, "-c", WITH_SHA256, *folders, out],
    }
    if mergekit:
        recipe = folder / "recipe.yml"
        models = "".join(f"  - {{model: {each}, parameters: {{weight: 1}}}}\n" for each in folders)
        recipe.write_text(f"merge_method: linear\ndtype: float32\nmodels:\n{models}")
        made["mergekit"] = [mergekit, recipe, out, "--no-copy-tokenizer"]
    return made


def seconds_and_bytes(command, folder):
    start = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed: {said.decode()[-2000:]}")
    [file] = (folder / "out").glob("*.safetensors")
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    seconds = time.perf_counter() - start
    for each in (folder / "out").iterdir():
        each.unlink()
    (folder / "out").rmdir()
    return seconds, usage.ru_maxrss * 1024


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--mergekit", metavar="COMMAND", help="mergekit-yaml, where it is")
    arguments.add_argument("--k", type=int, default=10)
    arguments.add_argument("--mb", type=float, default=200, help="megabytes of each checkpoint")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    k, mb, rounds = (2, 50, 1) if options.quick else (options.k, options.mb, options.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = make(folder, k, mb)
        one = (folders[0] / "model.safetensors").stat().st_size
        taken = {}
        for _ in track(range(rounds), "each round"):
            for name, command in commands(folder, folders, options.mergekit).items():
                taken.setdefault(name, []).append(seconds_and_bytes(command, folder))
    seconds = {name: [each[0] for each in runs] for name, runs in taken.items()}
    peaks = {name: [each[1] / one for each in runs] for name, runs in taken.items()}
    floor = seconds.pop("floor")
    peaks.pop("floor")
    limit = Limit(1.0, "a loop with SHA-256")
    size = f"{k} folders of {one / 1e6:.0f} MB"
    rows = [
        Row.of("averaging by command", size, "s", seconds.pop("ours"), seconds, floor, limit),
        Row.of("its peak", size, "x a checkpoint", peaks.pop("ours"), peaks),
    ]
    absent = "mergekit: skipped, --mergekit does not say where it is"
    finish(rows, [] if options.mergekit else [absent], options)


if __name__ == "__main__":
    main()
