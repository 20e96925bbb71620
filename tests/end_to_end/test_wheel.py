"""What the wheel holds, and that it works where there is no repository."""

import os
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import lawa_opt

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("lawa_opt", "timing", "baselines")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# What `python -m PACKAGE` says to --help and to --version, of all packages in one process.
BOTH_OPTIONS = """
import contextlib, importlib.util, runpy, sys
for package in sys.argv[1:]:
    print("found:", importlib.util.find_spec(package).origin)
    for option in ("--help", "--version"):
        sys.argv = ["", option]
        with contextlib.suppress(SystemExit):
            runpy.run_module(package, run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of what is committed or would be, built from a copy: a build writes into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in ROOT.iterdir():
        # Files that a wheel must not take are there too, so that they could be taken.
        if path.suffix in (".toml", ".md") or path.name in (*PACKAGES, "LICENSE", "tests", "docs"):
            run("cp", "-r", path, source, cwd=ROOT)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=source)
    [built] = out.iterdir()
    return built


def test_it_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert held == expected


def test_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("METADATA")]
        message = message_from_bytes(archive.read(metadata))
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert wheel.name == f"lawa_opt-{message['Version']}-py3-none-any.whl"
    assert message["Name"] == "lawa-opt"
    assert message["License-Expression"] == "MIT"
    assert message["Requires-Python"] == ">=3.11"
    requirements = message.get_all("Requires-Dist", [])
    assert [each for each in requirements if "extra" not in each] == ["torch>=2.6"]
    extras = set(message.get_all("Provides-Extra", []))
    assert {"files", "timing", "frameworks", "baselines", "docs", "dev"} <= extras
    readme = message.get_payload(decode=True)
    assert readme == (ROOT / "README.md").read_bytes()


def test_it_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows this one's other packages."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    [site] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    install = ("--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    run(sys.executable, "-m", "pip", *install, cwd=tmp_path)
    # As lines of a file, these folders come after the environment's own, and their own .pth files,
    # such as that of an editable installation of the repository, are not read.
    others = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(others))
    done = run(python, "-c", BOTH_OPTIONS, *PACKAGES, cwd=tmp_path, PYTHONPATH="")
    said = done.stdout.splitlines()
    found = [Path(line.removeprefix("found: ")) for line in said if line.startswith("found: ")]
    assert found == [site / package / "__init__.py" for package in PACKAGES]
    assert said.count(f"lawa-opt {lawa_opt.__version__}") == len(PACKAGES)
    for package in PACKAGES:
        assert f"python -m {package}" in done.stdout
