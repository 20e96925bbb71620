"""Hold this code to the metrics of the commit that the moves began from, bit for bit.

    python benchmarks/golden.py [--commit COMMIT]

Both run on this machine: the comparison and the ablation of tests/support/golden_runs.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import golden_runs  # noqa: E402

BEFORE_THE_MOVES = "1792e2a"


def run(code: Path, out: Path) -> dict[str, list[dict]]:
    subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "golden_runs.py", out],
        env={**os.environ, "PYTHONPATH": str(code)},
        cwd=out.parent,
        check=True,
    )
    return {
        name: json.loads((out / f"{name}.json").read_text()) for name in ("comparison", "ablation")
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", default=BEFORE_THE_MOVES)
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = folder / "before"
        subprocess.run(["git", "worktree", "add", "--detach", before, commit], cwd=ROOT, check=True)
        try:
            old, new = run(before, folder / "old"), run(ROOT, folder / "new")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    for name in ("measured_seconds", "other_cores"):
        for training in (*old["comparison"], *old["ablation"]):
            del training[name]
    found = list(golden_runs.differences(old, new))
    print("\n".join(found) or f"every figure is that of {commit}, bit for bit")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
