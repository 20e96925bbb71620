"""What several tests share."""

import ast
import gc
import multiprocessing.spawn
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pynvml
import pytest
from hypothesis import settings

from tests.support import warm_python
from tests.support.fake_nvml import FakeNvml, build

# Rich keeps the width that it finds when it is imported; each test says its own.
os.environ.pop("COLUMNS", None)

# The same cases each time: what passed here passes there. `--hypothesis-profile=default` looks for
# others. No deadline: a busy machine breaks no promise.
settings.register_profile("same cases", derandomize=True, deadline=None)
settings.load_profile("same cases")

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Have xdist take files in the order below; it would begin with those of the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        # Where tests are handed out none runs, and those who run them would wait for this import.
        import torch

        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while all is imported, nor in it afterwards.

    What is imported stays, and looking at it again and again takes a quarter of this time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave modules that are slow as a whole out of a run of the fast tests.

    Importing what they alone import takes longer than many fast tests.
    """
    is_left_out = config.option.markexpr == "not slow" and is_slow_as_a_whole(collection_path)
    return is_left_out or None


def is_slow_as_a_whole(path: Path) -> bool:
    """Tell whether a folder or module marks all its tests as slow."""
    if path.is_dir():
        return path == Path(__file__).with_name("end_to_end")
    source = path.read_text() if path.suffix == ".py" else ""
    return "\npytestmark = " in source and any(
        isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "pytestmark"
        and "pytest.mark.slow" in ast.unparse(node.value)
        for node in ast.parse(source).body
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that none is left alone at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.parent.name != "end_to_end", -slow[item.path]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA, and CUDA sees none here")


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """WikiText-2's validation part as plain text."""
    path = Path(os.environ.get("LAWA_OPT_DATA", SHARED_DATA)) / "wikitext-2" / "valid.txt"
    if not path.exists():
        pytest.skip(f"no {path}: set LAWA_OPT_DATA to the folder with wikitext-2/valid.txt")
    return path


@pytest.fixture(autouse=True)
def _signals_are_handled_as_before() -> Iterator[None]:
    """Whatever a test does, the next one is interrupted as this one was."""
    # A shell that starts the tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.fixture(autouse=True)
def _threads_end_with_their_spans() -> Iterator[None]:
    """Whatever a test does, no thread of ours polls or prints on into the next one."""
    yield
    assert not [thread for thread in threading.enumerate() if _is_ours(thread)]


def _is_ours(thread: threading.Thread) -> bool:
    """Tell whether a thread runs a function of the packages."""
    module = getattr(getattr(thread, "_target", None), "__module__", None) or ""
    return module.partition(".")[0] in {"lawa_opt", "timing", "baselines"}


@pytest.fixture(autouse=True)
def _what_is_imported_is_looked_at_no_more() -> Iterator[None]:
    """Have the collector leave out also what a test imports."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 50:
        gc.freeze()


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what this process starts begin in one that has imported what is slow to import."""
    monkeypatch.setattr(sys, "executable", warm_python.executable())
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(sys.executable))


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake NVML library, compiled."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without the functions of newer drivers."""
    return build(tmp_path_factory.mktemp("old_nvml"), "-DOLD")


def _put_under_pynvml(path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(path)
    monkeypatch.setattr(pynvml, "nvmlLib", fake.library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr("timing.gpu.nvml._initialised_by", None)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture
def nvml(nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """The fake library under the real binding, with two devices."""
    return _put_under_pynvml(nvml_library, monkeypatch)


@pytest.fixture
def old_nvml(old_nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """The older library under the real binding."""
    return _put_under_pynvml(old_nvml_library, monkeypatch)
