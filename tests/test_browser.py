"""A first visit in a real browser: `make lab` opens notebook 00, and Run All succeeds there."""

import os

import lab
import pytest

SCREENSHOTS = lab.ROOT / ".build" / "screenshots"
FIRST = "notebooks/00_start_here.ipynb"


@pytest.fixture
def page():
    if reason := lab.missing():
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=lab.CHROMIUM, args=lab.ARGUMENTS)
        yield browser.new_page(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
        browser.close()


@pytest.mark.slow
def test_make_lab_opens_the_first_notebook_and_all_of_it_runs(page, tmp_path):
    copy = lab.copy_of_repository(tmp_path / "repository")
    with lab.make_lab(copy, tmp_path / "jupyter") as address:
        visit = lab.Lab(page)
        visit.open(address)
        assert visit.path() == FIRST
        visit.screenshot(SCREENSHOTS / "00_opened.png")

        visit.run_all()
        visit.screenshot(SCREENSHOTS / "00_ran.png", whole=True)
        cells = visit.code_cells()
        errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
        assert errors == []
        assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert page.locator(".jp-Dialog").count() == 0
