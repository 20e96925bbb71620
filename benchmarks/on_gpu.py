"""All that only a GPU can answer, in nine minutes: tests, averaging, RST against time, methods.

    python benchmarks/on_gpu.py --out DIR [--wheels DIR] [--smoke] [--only PART ...]
        [--commit COMMIT]
    python benchmarks/on_gpu.py --publish DIR [--into FILE]

For a machine with one large GPU (H100, H200), PyTorch for it, and no network: CONTRIBUTING says
which wheels to bring. Each part is a process of its own with a limit of its own; it writes what it
finds as it goes, so that one that fails or is killed keeps what it had and stops no other. All ends
with the page `gpu.md`, and `--publish` writes it into RESULTS.md. `--smoke` does all of it on a
CPU, with tiny sizes and a small NVML library that a C compiler makes: its figures say nothing.
`--only` runs parts again in the folder of an earlier run, and keeps what the others found.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "RESULTS.md"
FOLDER = "on_gpu_parts"
PAGE = "gpu.md"

# In seconds, all parts together with looking around before them and the page after them. What one
# leaves of its own is there for the next.
TOTAL = 520
LOOK, WRITE_PAGE = 45, 14
# In this order; each is a file in FOLDER.
PARTS = {
    "gpu_tests": 100,
    "on_the_device": 65,
    "calibration": 130,
    "training": 88,
    "shared_card": 53,
    "comparison": 25,
}
# So many times as long on a machine that is only to try it, and may be busy with other things.
SMOKE_PATIENCE = 3
KILLED = "killed at its limit"
# Most of the end of what a part printed is kept beside what it found.
KEPT_CHARACTERS = 6000


def unpacked(wheels, folder):
    """Unpack wheels, which are archives of what is to be on the path; no installer is needed."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        sys.exit(f"{wheels} holds no wheels: CONTRIBUTING says how to fetch them")
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def environment(work, wheels, smoke, commit):
    """Of every process of the run."""
    # The comparison is to be as on a machine without MLflow, wherever it runs.
    without = work / "without_mlflow"
    without.mkdir()
    reason = "MLflow is kept out of this run: what is kept is published later, from elsewhere"
    (without / "mlflow.py").write_text(f"raise ImportError({reason!r})\n")
    path = [without, ROOT, HERE]
    if wheels is not None:
        path.append(unpacked(wheels, work / "wheels"))
    if already := os.environ.get("PYTHONPATH"):
        path.append(already)
    made = {
        **os.environ,
        "LAWA_OPT_COMMIT": commit,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        # A home that cannot be written to must not matter.
        "MPLCONFIGDIR": str(work / "matplotlib"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "TRITON_CACHE_DIR": str(work / "triton"),
        # Its processes would take seconds to start, for a few small graphs.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # What other packages bring to pytest changes nothing here, and is not asked for.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    if smoke:
        sys.path.insert(0, str(ROOT))
        from tests.support.fake_nvml import build

        if shutil.which("gcc") is None and shutil.which("cc") is None:
            sys.exit("--smoke needs a C compiler (gcc) for its NVML library: install one")
        library = build(work)
        made |= {
            "LD_LIBRARY_PATH": f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "FAKE_NVML_GPUS": "1",
            "FAKE_NVML_WATTS": "300",
            # The first of that library, and none of CUDA's, so that no real GPU is used either.
            "CUDA_VISIBLE_DEVICES": "GPU-aaaa",
        }
    return made


def commit_here():
    """The commit that is run, and whether files differ from it; empty where nothing tells."""
    try:
        commit, changed = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + (", with changes" if changed.stdout.strip() else "")


def module(name, *arguments):
    return [sys.executable, "-m", f"{FOLDER}.{name}", *map(str, arguments)]


def run(command, limit_seconds, log, env):
    """Why a process did not end well, in words, or an empty string; all that it started ends."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_seconds)
            failure = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            failure = f"{KILLED} of {limit_seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return failure


def run_part(name, limit_seconds, out, work, env, smoke):
    """Run a part; what became of it stands in its file beside what it found."""
    file, log = out / f"{name}.json", work / f"{name}.log"
    command = module(name, "--json", file, "--seconds", limit_seconds, "--work", work)
    begin = time.monotonic()
    failure = run([*command, *["--quick"] * smoke], limit_seconds, log, env)
    found = {"rows": [], "notes": [], "data": {}}
    if file.exists():
        found = json.loads(file.read_text())
    said = log.read_text(errors="replace")
    if failure and said.strip():
        failure += f"; the last it said: {said.strip().splitlines()[-1][:300]}"
    found |= {
        "failure": failure,
        "seconds": round(time.monotonic() - begin, 1),
        "limit_seconds": limit_seconds,
        "smoke": smoke,
        "output": said[-KEPT_CHARACTERS:],
    }
    write(file, json.dumps(found, indent=1))
    # Of a part that was killed while it wrote.
    file.with_name(f"{file.name}.partial").unlink(missing_ok=True)
    return failure


def write(path, text):
    """Replace a file as a whole."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(text)
    temporary.replace(path)


def pack(work, out):
    """Put what the comparison has left into one archive; its checkpoints are of no more use."""
    folder = work / "comparison"
    if folder.exists():
        with tarfile.open(out / "comparison.tar.gz", "w:gz") as archive:
            archive.add(
                folder, folder.name, filter=lambda each: None if ".pt" in each.name else each
            )


def everything(out, wheels, smoke, only, commit):
    """Run all parts, or only some again; returns those that did not end well, by name."""
    start = time.monotonic()
    patience = SMOKE_PATIENCE if smoke else 1
    out.mkdir(parents=True, exist_ok=True)
    if only and not any((out / f"{name}.json").exists() for name in PARTS):
        sys.exit(f"{out} holds no run of which parts could be run again: leave --only out")
    if not only and any(out.iterdir()):
        sys.exit(f"{out} is not empty: give a folder of its own, so that no two runs are mixed")
    parts = {name: limit for name, limit in PARTS.items() if not only or name in only}
    failures = {}
    with tempfile.TemporaryDirectory(prefix="on-gpu-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        env = environment(work, wheels, smoke, commit or commit_here())
        log = work / "look.log"
        failure = run(module("look", *["--smoke"] * smoke), patience * LOOK, log, env)
        print(log.read_text(errors="replace").strip(), flush=True)
        # What is only slow the first time may be there all the same.
        if failure and not failure.startswith(KILLED):
            sys.exit(f"nothing was run: {failure}, see above")
        planned_end = LOOK
        for name, limit in parts.items():
            begin = time.monotonic()
            planned_end += limit
            if name == [*PARTS][-1]:
                planned_end = TOTAL - WRITE_PAGE
            limit_seconds = int(patience * planned_end - (begin - start))
            failure = run_part(name, limit_seconds, out, work, env, smoke)
            taken = time.monotonic() - begin
            print(f"{name}: {failure or 'ended well'}, {taken:.0f} s", flush=True)
            if failure:
                failures[name] = failure
        pack(work, out)
        failure = run(module("page", out), patience * WRITE_PAGE, work / "page.log", env)
        if failure:
            failures["page"] = failure
            print((work / "page.log").read_text(errors="replace")[-KEPT_CHARACTERS:])
    print(f"{time.monotonic() - start:.0f} s in all; all it found is in {out}")
    return failures


def publish(out, into):
    """Write the page of a run into a file of results."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    options = [] if into is None else ["--into", into]
    return subprocess.run(
        module("page", out, "--publish", *options), cwd=Path.cwd(), env=env, check=False
    ).returncode


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="run, and write what is found there")
    what.add_argument(
        "--publish", type=Path, metavar="DIR", help="write the page of that run into RESULTS.md"
    )
    arguments.add_argument("--wheels", type=Path, metavar="DIR", help="packages to bring along")
    arguments.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help="run these again, in --out"
    )
    arguments.add_argument(
        "--commit", help="that is run, where there is no repository to ask, for the page to name"
    )
    arguments.add_argument("--smoke", action="store_true", help="on a CPU, tiny, to try it")
    arguments.add_argument(
        "--into", type=Path, metavar="FILE", help=f"publish there, not into {RESULTS.name}"
    )
    options = arguments.parse_args()
    if options.publish is not None:
        sys.exit(publish(options.publish.resolve(), options.into and options.into.resolve()))
    failures = everything(
        options.out.resolve(),
        options.wheels and options.wheels.resolve(),
        options.smoke,
        options.only,
        options.commit,
    )
    page = options.out / PAGE
    if page.exists():
        print(f"\n{page.read_text()}")
    if failures:
        sys.exit("did not end well: " + ", ".join(failures))


if __name__ == "__main__":
    main()
