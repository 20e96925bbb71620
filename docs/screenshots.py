"""Takes the pictures of MLflow's UI in docs, after a comparison, with its server running.

    python docs/screenshots.py PAGE VIEW

The two addresses are those that `python -m baselines compare` prints at its end. Chromium is taken
from the path; the pictures go to docs/images.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1400, "height": 860}


def comparison(page: Page, address: str) -> None:
    """The report: verdict, table and curves."""
    page.goto(address)
    page.frame_locator("iframe").first.locator(".headline").wait_for()
    # The pictures in it come after the text.
    page.wait_for_timeout(2000)
    page.screenshot(path=IMAGES / "comparison.png")


def saved_view(page: Page, address: str) -> None:
    """The saved view: curves over RST, by method."""
    page.goto(address)
    page.locator(".js-plotly-plot path.js-line").first.wait_for(state="attached")
    # The lines come in one after the other.
    page.wait_for_timeout(5000)
    page.screenshot(path=IMAGES / "saved-view.png")


def main() -> None:
    """Take both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", help="of the comparison: verdict, table and plots")
    parser.add_argument("view", help="the saved view: curves over RST")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(60_000)
        # MLflow opens its assistant beside a first visit.
        page.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
            "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
        )
        comparison(page, options.page)
        saved_view(page, options.view)
        browser.close()


if __name__ == "__main__":
    main()
