"""The API reference builds without a warning, and names what the packages give away."""

import html
import json
import os
import re
import runpy
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import baselines
import lawa_opt
import timing

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_in_it(site: Path) -> None:
    # Four lines of text, and then a compressed line for each name.
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    named = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    for package in (lawa_opt, timing, baselines):
        public = {f"{package.__name__}.{name}" for name in package.__all__}
        assert public
        assert public <= named


def test_the_readme_is_its_first_page(site: Path) -> None:
    index = (site / "index.html").read_text()
    assert "When not to use it" in index
    assert 'src="images/loss-over-rst.png"' in index
    assert (site / "images" / "loss-over-rst.png").exists()
    # What a page of the repository leads to is a page here too.
    for page in ("quick_start", "results", "contributing", "changelog"):
        assert f'href="{page}/"' in index
    for name in ("LICENSE", "CITATION.cff"):
        assert (site / name).read_text() == (ROOT / name).read_text()
    assert 'href="../measurements/"' in (site / "results" / "index.html").read_text()


def test_every_page_is_in_the_navigation(site: Path) -> None:
    index = (site / "index.html").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        address = path.relative_to(ROOT / "docs").with_suffix("")
        assert f'href="{address}/"' in index, path


def test_the_reference_begins_with_all_public_names(site: Path) -> None:
    page = (site / "reference" / "index.html").read_text()
    for package in (lawa_opt, timing, baselines):
        for name in package.__all__:
            assert re.search(rf'href="\.\./\w+/#[\w.]+\.{name}"><code>{name}</code>', page), name


def test_included_examples_are_on_their_pages(site: Path) -> None:
    page = html.unescape((site / "frameworks" / "index.html").read_text())
    assert "LAWACallback(k=5)" in page
    assert "--8<--" not in page


def test_every_claim_is_there_with_its_figure_and_what_was_found(site: Path) -> None:
    page = html.unescape((site / "claims" / "index.html").read_text())
    # Those of a study that writes its page itself lie beside it.
    results = sorted(
        path
        for path in (ROOT / "docs" / "claims").glob("*.json")
        if not path.with_suffix(".md").exists()
    )
    studies = [
        name.replace("_", "-") for name in runpy.run_path(str(ROOT / "docs" / "pages.py"))["CLAIMS"]
    ]
    assert [each.stem for each in results] == sorted(
        [f"{study}-{workload}" for study in studies for workload in ("digits", "pydocs")]
        + ["quantised-regression"]
    )
    for result in results:
        found = json.loads(result.read_text())
        assert len(found["seeds"]) >= 5
        assert (site / "claims" / f"{result.stem}.png").exists()
        assert f'src="{result.stem}.png"' in page
        for finding in found["findings"]:
            assert f"{finding['verdict'].capitalize()}</strong>: {finding['claim']}" in page
