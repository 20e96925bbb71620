"""A comparison on a real SLURM of one node, one job of which is cancelled."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from baselines.experiment.kept import read_comparison
from tests.support import warm_python
from tests.support.commands import command
from tests.support.kept_comparison import plan_of, results
from tests.support.one_node_slurm import missing, one_node
from tests.support.profiles import profile_of
from tests.support.trainings import COSTS
from tests.support.user_files import WAITS

pytest.importorskip("submitit", reason="needs the extra: pip install 'lawa-opt[cluster]'")
if missing():
    pytest.skip(missing(), allow_module_level=True)

COMPARE = (
    "compare --workload digits --lr 0.05 --seeds 1 --methods waits.py,decayed --budget 2s "
    "--reference ../reference.json --no-publish"
)

# In mid training it waits until it is let go on, so that it is cancelled while it runs, however
# fast the machine.


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("slurm")
    try:
        with one_node(folder) as environment:
            yield {**environment, "COLUMNS": "200"}
    except RuntimeError as error:
        pytest.skip(str(error))


def start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    options = (*COMPARE.split(), "--jobs", "2", "--cluster", "slurm")
    return subprocess.Popen(
        [warm_python.executable(), "-m", "baselines", *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table(out: str) -> str:
    return out[out.rindex("of RST each") :].split("- Measured seconds")[0]


def test_a_cancelled_job_is_marked_and_gone_on_with(
    tmp_path: Path, slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = plan_of(methods=("decayed",)).signature
    profile_of([COSTS], signature).write(tmp_path / "reference.json")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        (folder / "waits.py").write_text(WAITS)
    (whole / "go").touch()
    undisturbed = command(whole, *COMPARE.split())
    assert (undisturbed.returncode, undisturbed.stderr) == (0, "")
    with start(cut, slurm) as cancelled:
        try:
            while not list(cut.glob("lawa-runs/*/2s/waits.py-seed-0/lock")):
                assert cancelled.poll() is None, cancelled.communicate()
                time.sleep(0.05)
            # The first that was submitted is the one that waits.
            submitted = cut.glob("lawa-runs/*/cluster/*/*_submitted.pkl")
            job = min(int(path.name.partition("_")[0]) for path in submitted)
            subprocess.run(["scancel", str(job)], env=slurm, check=True)
            out, err = cancelled.communicate()
        finally:
            cancelled.kill()
    assert cancelled.returncode == 1, out
    assert err == (
        "error: 1 of 2 runs under 2 s did not end (waits.py, seed 0); the same command goes on "
        "with what did not end\n"
    )
    assert re.search(rf"waits.py, seed 0: FAILED .*: its job {job} left no result \(state", out)
    assert re.search(r" waits +no run ended", out), out

    (cut / "go").touch()
    with start(cut, slurm) as again:
        out, err = again.communicate()
    assert (again.returncode, err) == (0, "")
    assert table(out) == table(undisturbed.stdout)
    done = [
        read_comparison(root)
        for folder in (whole, cut)
        for root in (folder / "lawa-runs").iterdir()
    ]
    assert results(done[0]) == results(done[1])
