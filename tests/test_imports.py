"""Who may import whom: what keeps the three packages apart, and each vendor in one file."""

import ast
import functools
import graphlib
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("lawa_opt", "timing", "baselines")
FORBIDDEN = {
    "lawa_opt": {"timing", "baselines"},
    "timing": {"lawa_opt", "baselines"},
    "baselines": set(),
}
ONE_FILE = {
    "pynvml": "timing/gpu/nvml.py",
    "pytorch_optimizer": "baselines/methods/recipes/lion.py",
    "schedulefree": "baselines/methods/recipes/schedule_free_optimizer.py",
    "torchao": "baselines/training/with_torchao.py",
}


@functools.cache
def imports_of(path: Path) -> set[str]:
    """All that a file imports, wherever in it: modules, and names from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in it."""
    return {name.partition(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        forbidden = imported(path) & {
            *FORBIDDEN[package],
            "examples",
            "studies",
            "tests",
            "benchmarks",
        }
        assert not forbidden, f"{path} imports {forbidden}"


# A package's folders and files from above to below; one may import what is in it and below it, and
# those of one row nothing of each other.
ROWS = {
    "timing": (
        {"__init__"},
        {"__main__"},
        {"cli"},
        {"mapping"},
        {"calibration"},
        {"gpu", "clocks"},
        {"rst", "statistics", "limits", "tracebacks"},
        {"secrets"},
    ),
    "baselines": (
        {"__init__"},
        {"__main__"},
        {"cli"},
        {"tracking"},
        {"analysis"},
        {"experiment"},
        {"training"},
        {"methods"},
        {"workloads"},
        {"external"},
    ),
}


def imports_inside(package: str) -> dict[str, set[str]]:
    """The modules of a package that each of them imports, wherever in it."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in (ROOT / package).rglob("*.py")
    }
    return {name: imports_of(path) & names.keys() for name, path in names.items()}


@pytest.mark.parametrize("package", ROWS)
def test_imports_inside_a_package_go_down(package: str) -> None:
    rank = {name: number for number, row in enumerate(ROWS[package]) for name in row}
    for name, asked in imports_inside(package).items():
        importer = name.split(".")[1]
        for other in asked:
            part = other.split(".")[1]
            assert part == importer or rank[part] > rank[importer], f"{name} imports {other}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_imports(package: str) -> None:
    # Sorting ends where there is a circle, and names it.
    list(graphlib.TopologicalSorter(imports_inside(package)).static_order())


@pytest.mark.parametrize("vendor", ONE_FILE)
def test_one_file_imports_a_vendor(vendor: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if vendor in imported(path)
    }
    assert found == {ONE_FILE[vendor]}


def test_one_folder_imports_mlflow_and_what_starts_it_does_not() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "mlflow" in imported(path)
    }
    assert {path.rpartition("/")[0] for path in found} == {"baselines/tracking"}
    assert "baselines/tracking/follow.py" not in found


@pytest.mark.parametrize("package", [*PACKAGES, "baselines.workloads"])
def test_no_public_name_hides_a_module(package: str) -> None:
    """As an attribute of its package, such a module could no more be reached."""
    module = importlib.import_module(package)
    inside = {found.name for found in pkgutil.iter_modules(module.__path__)} - {"__main__"}
    assert inside
    hidden = {name for name in inside if not inspect.ismodule(getattr(module, name, module))}
    assert not hidden


@pytest.mark.slow
def test_lawa_opt_needs_torch_alone() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import lawa_opt;"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['lawa_opt']"


def test_a_strange_timing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "timing.py").write_text("")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import baselines"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"`timing` found at {tmp_path / 'timing.py'} is not lawa-opt's" in done.stderr


# Parsing all tests takes longer than all else here.
OF_A_TEST_MODULE = re.compile(
    r"^\s*(?:from|import)\s+(?:tests)?\.[\w.]*\btest_|"
    r"^\s*from\s+(?:tests\b|\.)[\w.]*\s+import\s+(?:\([^)]*|[^\n]*)\btest_",
    re.MULTILINE,
)


@pytest.mark.parametrize(
    ("line", "is_of_a_test_module"),
    [
        ("from tests.baselines.test_mean import f", True),
        ("    import tests.baselines.test_mean as m", True),
        ("from tests.baselines import a, test_mean", True),
        ("from tests.baselines import (\n    a,\n    test_mean,\n)", True),
        ("from .test_mean import f", True),
        ("from . import test_mean", True),
        ("from tests.support.trainings import f\n\n\ndef test_f() -> None:", False),
    ],
)
def test_an_import_of_a_test_module_is_found(line: str, is_of_a_test_module: bool) -> None:
    assert bool(OF_A_TEST_MODULE.search(f"import ast\n{line}\n")) is is_of_a_test_module


def test_no_test_module_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        found = OF_A_TEST_MODULE.search(path.read_text())
        assert not found or path == Path(__file__), (
            f"{path}: {found[0]}: what is shared goes to tests/support"
        )
