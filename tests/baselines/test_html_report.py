"""The HTML report: all of it in one file, and what is from a file is never more than text."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baselines.analysis import report
from baselines.cli.app import app
from baselines.experiment.comparison import Comparison
from baselines.experiment.manifest import MANIFEST
from baselines.training.results import TrainingResult
from tests.support.comparisons import CURVES, comparison, kept, run
from timing import Budget

pytestmark = pytest.mark.slow

EVIL = '</pre><script>alert("1")</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """The text of a page, its elements, and what they would load."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.tags, self.loads, self.handlers = "", [], [], []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def reported(folder: Path, *roots: Path) -> Page:
    out = folder / "report.html"
    arguments = ["report", *map(str, roots), "--out", str(out)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert str(out) in done.output
    return Page(out.read_text())


def test_all_that_is_said_is_in_one_file_that_loads_nothing(tmp_path: Path) -> None:
    made = comparison(CURVES)
    page = reported(tmp_path, kept(made, tmp_path / "root"))
    said = report.report_of(made)
    places = [page.text.index(sentence) for sentence in said.headline]
    for row in (row for table in (*said.tables, *said.details) for row in table.rows):
        assert all(cell in page.text for cell in row)
    # What matters first.
    table, sentence = page.text.index("1.3333 ± 0.1897"), page.text.index(said.sentences[0])
    assert [*places, table, sentence] == sorted([*places, table, sentence])
    assert page.text.index(said.conditions) > sentence
    assert json.loads((tmp_path / "root" / "4s" / MANIFEST).read_text())["command"] in page.text
    assert page.tags.count("img") == 4
    assert all(each.startswith("data:image/svg+xml;base64,") for each in page.loads)
    assert "script" not in page.tags
    # The same again, to the byte.
    before = (tmp_path / "report.html").read_bytes()
    reported(tmp_path, tmp_path / "root")
    assert (tmp_path / "report.html").read_bytes() == before


def test_what_is_from_a_file_is_text(tmp_path: Path) -> None:
    made = comparison({"constant": CURVES["constant"], "lawa": CURVES["lawa"]})
    path = kept(made, tmp_path / "root") / "4s" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest |= {"command": EVIL, "metric": EVIL, "data": {**manifest["data"], EVIL: EVIL}}
    manifest["methods"][1]["title"] = EVIL
    path.write_text(json.dumps(manifest))
    page = reported(tmp_path, tmp_path / "root")
    assert page.text.count(EVIL) > 5
    assert not {"script"} & {*page.tags}
    assert not page.handlers
    assert all(each.startswith("data:image/svg+xml;base64,") for each in page.loads)
    path.write_text(json.dumps({**manifest, "workload": EVIL}))
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["report", str(tmp_path / "root")])
    assert "comparison.json is damaged: a workload's name goes into file names" in done.output


def test_several_budgets_and_failures_stand_in_one_page(tmp_path: Path) -> None:
    made = comparison(CURVES)
    longer = dataclasses.replace(made, plan=dataclasses.replace(made.plan, budget=Budget(8.0)))
    runs = tuple(
        run("lawa", 1, [3.1], "it diverged") if (r.method, r.seed) == ("lawa", 1) else r
        for r in longer.runs
    )
    longer = Comparison(longer.plan, made.profile, (TrainingResult(runs, 4.0, 4.1, 0.0),))
    roots = [kept(each, tmp_path / f"{i}") for i, each in enumerate((made, longer))]
    page = reported(tmp_path, *roots)
    assert "How the ranking moves with the budget" in page.text
    assert "a run of LAWA of the constant rate FAILED" in page.text
    assert "(1 of 3 failed)" in page.text
    assert page.tags.count("section") == 3


def test_a_folder_without_an_end_and_another_file_are_refused(tmp_path: Path) -> None:
    root, other = kept(comparison(CURVES), tmp_path / "root"), tmp_path / "mine.html"
    other.write_text("<!doctype html> my thesis")
    for arguments, said in (
        ([str(tmp_path / "nowhere")], "holds no comparison"),
        ([str(root), "--out", str(other)], "is there and is no report"),
        ([str(root), "--out", str(tmp_path)], "is a folder"),
    ):
        done = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["report", *arguments])
        assert done.exit_code == 2
        assert said in done.output
    (event_log,) = root.glob("4s/decayed-seed-1/events.jsonl")
    event_log.write_text("".join(event_log.read_text().splitlines(keepends=True)[:-1]))
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["report", str(root)])
    assert done.exit_code == 2
    assert re.search("has not ended: seed 1 of decayed is missing", done.output)
    assert other.read_text() == "<!doctype html> my thesis"
