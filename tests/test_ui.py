"""What a reviewer sees: a real Chromium opens MLflow's own UI on a comparison."""

import dataclasses
import math
import re
import shutil
from collections.abc import Iterator

import pytest
from test_report import comparison
from tracking_server import free_port, server

from baselines.comparison import Comparison
from baselines.methods import METHODS
from baselines.tracker import Tracker
from baselines.training import Trajectory

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: the dev extra")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or chrome on the path: apt-get install chromium"
)
# The UI loads its parts one after the other, and a busy machine takes its time.
TIMEOUT_MILLISECONDS = 60_000

NAMES = tuple(METHODS)
ACCOUNT = (
    {"operation": "train_step", "times": 100, "seconds": 3.5, "charged": True},
    {"operation": "collect", "times": 10, "seconds": 0.2, "charged": True},
    {"operation": "evaluate", "times": 10, "seconds": 0.4, "charged": False},
)


def curve(method: int, seed: int) -> list[float]:
    return [
        (3 - 0.2 * method) * math.exp(-i / (5 - 0.3 * method)) + 1 + 0.03 * seed for i in range(20)
    ]


@pytest.fixture(scope="module")
def made() -> Comparison:
    curves = {m: [curve(i, seed) for seed in range(3)] for i, m in enumerate(NAMES)}
    invented = comparison(curves)
    runs = tuple(dataclasses.replace(run, account=ACCOUNT) for run in invented.runs)
    return dataclasses.replace(invented, trajectories=(Trajectory(runs, 4.0, 4.1, 0.0),))


@pytest.fixture(scope="module")
def tracker(made: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    folder, port = tmp_path_factory.mktemp("ui"), free_port()
    with server(folder, port), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        with Tracker(made.plan, made.profile, wait_seconds=120) as tracker:
            for run in made.runs:
                tracker.run_started(run.method, run.seed)
                for point in run.points:
                    tracker.point(run.method, run.seed, point)
            tracker.trajectory_ended(made.trajectories[0])
            tracker.finish(made)
        yield tracker


@pytest.fixture
def page(tracker: Tracker) -> Iterator["sync_api.Page"]:
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, which a container's root user cannot have; it opens our own pages only.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(TIMEOUT_MILLISECONDS)
        # MLflow opens its assistant beside a first visit.
        page.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
            "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
        )
        yield page
        browser.close()


def test_the_saved_view_opens_on_curves_over_rst_a_line_a_method(tracker, page) -> None:
    *_, address = tracker.how_to_review()
    page.goto(address)
    for method in NAMES:
        page.get_by_text(f"Group: {method}", exact=True).wait_for()
    # The first chart is the comparison itself: the metric of each method, over RST.
    chart = page.locator(".js-plotly-plot").first
    chart.locator("path.js-line").first.wait_for(state="attached")
    chart.get_by_text("rst_seconds").wait_for()
    lines = chart.locator("path.js-line")
    drawn = {lines.nth(i).get_attribute("d") for i in range(lines.count())}
    assert len(drawn) >= len(NAMES)
    # A line has a place for each point, and is no dot.
    assert all(len(re.findall("[ML]", path or "")) + (path or "").count("C") > 1 for path in drawn)
    headings = page.get_by_text(re.compile(r"^(validation|train|final|account)$"))
    assert [headings.nth(i).inner_text() for i in range(2)] == ["validation", "train"]
    assert page.get_by_text("lawa, seed 0", exact=True).count() == 1


def test_the_comparison_has_its_table_verdict_and_plots(tracker, page, made) -> None:
    page.goto(tracker.how_to_review()[0].rpartition(" ")[2])
    page.get_by_text("Show more").first.click()
    table = page.locator("table", has_text="RST to target")
    for method in NAMES:
        cell = table.get_by_text(METHODS[method].title, exact=True)
        cell.first.wait_for()
    assert page.get_by_text("ends BETTER than constant rate").count() >= 1
    for name in ("metric-over-rst", "final-metric", "time-to-target", "account"):
        image = page.locator(f"img[src*='{name}.png']")
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.naturalWidth > 100", arg=image.element_handle())
