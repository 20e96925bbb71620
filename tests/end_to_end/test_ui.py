"""What a reviewer sees: a real Chromium opens MLflow's own UI on a real comparison."""

import re
import shutil
from collections.abc import Iterator

import pytest

from baselines.methods.names import find
from tests.support.commands import command, made_up
from tests.support.tracking_server import free_port, server

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: the dev extra")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or chrome on the path: apt-get install chromium"
)
# The UI loads its parts one after the other, and a busy machine takes its time.
TIMEOUT_MILLISECONDS = 60_000

NAMES = ("constant", "decayed", "lawa")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The lines that a real comparison ends with."""
    folder, port = tmp_path_factory.mktemp("ui"), free_port()
    reference = made_up(folder, "digits", None, k=5)
    # Long enough to be seen by what sends, which takes seconds to start.
    # Long enough for MLflow to look at the system once.
    options = f"--workload digits --seeds 2 --budget 12s --methods {','.join(NAMES)}"
    uri = f"http://127.0.0.1:{port}"
    with server(folder, port):
        done = command(
            folder,
            *("compare", *options.split(), "--reference", reference),
            MLFLOW_TRACKING_URI=uri,
        )
        assert done.returncode == 0, done.stderr
        yield done.stdout.strip().splitlines()


@pytest.fixture
def page(printed: list[str]) -> Iterator["sync_api.Page"]:
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


def test_the_saved_view_opens_on_one_wide_chart_over_rst_a_line_a_method(printed, page) -> None:
    page.goto(next(line for line in printed if "viewStateShareKey=" in line))
    chart = page.locator(".js-plotly-plot").first
    chart.locator("path.js-line").first.wait_for(state="attached")
    chart.get_by_text("rst_seconds").wait_for()
    page.get_by_text("validation nats per image over RST").first.wait_for()
    # The parent has no curve, and no name beside the methods'.
    legend = page.get_by_text("(validation/metric)")
    assert {each.split()[0] for each in legend.all_inner_texts()} == {*NAMES}
    lines = chart.locator("path.js-line")
    drawn = {lines.nth(i).get_attribute("d") for i in range(lines.count())}
    assert len(drawn) >= len(NAMES)
    # A line has a place for each point, and is no dot.
    assert all(len(re.findall("[ML]", path or "")) + (path or "").count("C") > 1 for path in drawn)
    box = chart.bounding_box()
    assert box is not None
    assert box["width"] > 600
    # The other sections are closed, so no other chart is drawn.
    assert page.locator(".js-plotly-plot").count() == 1


def test_the_printed_address_opens_on_the_verdict_and_the_table(printed, page) -> None:
    page.goto(opened_address(printed))
    frame = page.frame_locator("iframe").first
    frame.locator(".headline").wait_for()
    assert "Two seeds cannot show a difference" in frame.locator(".headline").inner_text()
    for method in NAMES:
        frame.locator("table").first.get_by_text(find(method).title, exact=True).wait_for()
    place = page.locator("iframe").first.bounding_box()
    assert place is not None
    assert place["y"] < 300


def opened_address(printed: list[str]) -> str:
    (address,) = (line.rpartition(" ")[2] for line in printed if line.startswith("Table, verdict"))
    return address


def opened(printed, page) -> str:
    """The page of the comparison, and its address without what is asked of it."""
    address = opened_address(printed).partition("/artifacts/")[0]
    page.goto(f"{address}?workflowType=machine_learning")
    return address


def test_the_comparison_has_its_table_verdict_and_plots(printed, page) -> None:
    opened(printed, page)
    page.get_by_text("Show more").first.click()
    table = page.locator("table", has_text="RST to target").first
    for method in NAMES:
        cell = table.get_by_text(find(method).title, exact=True)
        cell.first.wait_for()
    claim = re.compile("LAWA of the constant rate ends at .* over 2 paired seeds")
    page.get_by_text(claim).first.wait_for()
    for name in ("metric-over-rst", "final-metric", "time-to-target", "account"):
        image = page.locator(f"img[src*='{name}.png']")
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.naturalWidth > 100", arg=image.element_handle())


def test_a_run_has_its_model_and_what_matters_first(printed, page) -> None:
    opened(printed, page)
    page.get_by_text(re.compile("^lawa, seed 0")).first.click()
    page.get_by_text("averaged lawa 0").first.wait_for()
    shown = page.get_by_text(
        re.compile("^(method|seed|budget_seconds|learning_rate|lawa.k|lawa.every|workload|policy)$")
    )
    names = [shown.nth(i).inner_text() for i in range(shown.count())]
    assert names[:4] == ["method", "seed", "budget_seconds", "learning_rate"]


def test_the_system_is_shown(printed, page) -> None:
    address = opened(printed, page)
    page.get_by_text("Show more").first.wait_for()
    page.goto(f"{address}/system-metrics?workflowType=machine_learning")
    page.get_by_text("cpu_utilization_percentage", exact=True).first.wait_for()
