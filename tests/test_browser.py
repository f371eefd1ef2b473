"""A first visit in a real browser, and the panels of `helpers.widgets` as a reader uses them there.

The panels are those of the notebooks. `make test` runs notebook 00 whole, then a panel that fails, and the tuning panel
of 01 in a copy that holds only the cells that the panel stands on (those tagged `sweep`) and those of its section. With
RELEASE=1 every notebook with a panel is run whole and its panels are used, which takes some twenty minutes.
"""

import json
import os
import re

import lab
import nbformat
import pytest

from notebooks import NOTEBOOKS, tagged

RELEASE = os.environ.get("RELEASE") == "1"
SCREENSHOTS = lab.ROOT / ".build" / "screenshots"
FIRST = "notebooks/00_start_here.ipynb"
STARTS = {"tuning": "Start", "decoding": "Generate"}  # the button of a panel, and what it says at the end
ENDS = {"tuning": re.compile("finished after"), "decoding": re.compile("ended by itself|cut at max_new_tokens")}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200 if RELEASE else 300)]


@pytest.fixture
def page():
    if reason := lab.missing():
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=lab.CHROMIUM, args=lab.ARGUMENTS)
        yield browser.new_page(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`make lab` in a copy of the repository, once for all tests here: its address, the copy, and where runs go."""
    work = tmp_path_factory.mktemp("browser")
    copy = lab.copy_of_repository(work / "repository")
    with lab.make_lab(copy, work / "jupyter") as address:
        yield address, copy, work / "jupyter" / "runs"


@pytest.fixture
def visit(page, served):
    one = lab.Lab(page)
    one.address, one.folder, one.runs = served
    yield one
    page.evaluate(f"async () => {{ await {lab.NOTEBOOK}.sessionContext.shutdown() }}")


def section_of(name, heading, more=()):
    """A notebook of the cells that a section stands on, `more` of our own, and the code cells of the section."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    start = next(i for i, cell in enumerate(notebook.cells) if f"{heading}\n" in f"{cell.source}\n")
    ends = [i for i, cell in enumerate(notebook.cells) if i > start and re.search(r"(?m)^## ", cell.source)]
    below = [cell for cell in notebook.cells[start : ends[0]] if cell.cell_type == "code"]
    above = [notebook.cells[i] for i in tagged(notebook, "sweep") if i < start]
    notebook.cells = [*above, *(nbformat.v4.new_code_cell(source) for source in more), *below]
    return notebook


def open_section(visit, name, heading, more=()):
    if RELEASE:
        return open_notebook(visit, None, name)
    open_notebook(visit, section_of(name, heading, more), f"section_{name}")


def open_notebook(visit, notebook, name):
    """Open a notebook of our own in the copy, or one as it is shipped, and run it."""
    file = f"notebooks/{name}.ipynb"
    if notebook is not None:
        nbformat.write(notebook, visit.folder / file)
    visit.open(re.sub(r"/lab(/tree/[^?]*)?(?=\?)", f"/lab/tree/{file}", visit.address))
    assert visit.path() == file
    run_all(visit)


def run_all(visit):
    visit.run_all(seconds=600 if RELEASE else 240)
    errors = [output for cell in visit.code_cells() for output in cell["outputs"] if output["output_type"] == "error"]
    assert errors == []


def number_box(panel, label):
    return panel.get_by_label(label, exact=True)


def type_into(panel, label, text):
    box = number_box(panel, label)
    box.fill(text)
    box.press("Tab")


def said(panel, text, seconds=60):
    panel.locator("[role=status]", has_text=text).first.wait_for(timeout=1000 * seconds)


def drawn_step(panel):
    """The step of the last training loss that the curve shows."""
    seen = re.search(r"training loss [\d.]+ at step (\d+)", panel.locator("img").get_attribute("alt"))
    return int(seen[1]) if seen else 0


def n_rows(panel, number):
    """Waits until the table of a panel has so many rows."""
    script = "([panel, number]) => panel.querySelectorAll('tbody tr').length === number"
    panel.page.wait_for_function(script, arg=[panel.element_handle(), number], timeout=60_000)


def history(panel):
    return panel.locator(".panel-history tbody th").all_inner_texts()


def test_make_lab_opens_the_first_notebook_and_all_of_it_runs(page, visit):
    visit.open(visit.address)
    assert visit.path() == FIRST
    visit.screenshot(SCREENSHOTS / "00_opened.png")

    run_all(visit)
    visit.screenshot(SCREENSHOTS / "00_ran.png", whole=True)
    cells = visit.code_cells()
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert page.locator(".jp-Dialog").count() == 0


def test_will_it_fit_by_hand(page, visit):
    ask = "widgets.will_it_fit(model='110M BERT-base', method='full', batch=16, length=128, gpu='T4 (16 GB)')"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [nbformat.v4.new_code_cell(f"from helpers import widgets\n\n{ask}")]
    open_notebook(visit, nbformat.v4.new_notebook(cells=cells, metadata=kernel), "fitting")
    panel = page.locator(".fitting-panel")
    type_into(panel, "batch", "64")
    said(panel, "110M BERT-base, full, 64 x 128")
    panel.get_by_label("gpu").select_option("H100 (80 GB)")
    said(panel, "on H100 (80 GB): yes")
    assert panel.locator("img").get_attribute("alt").startswith("110M BERT-base, full, 64 x 128, on H100 (80 GB): yes")
    panel.screenshot(path=SCREENSHOTS / "will_it_fit.png")


def test_tuning_by_hand(page, visit):
    open_section(visit, "01_classification", "## Tune it by hand")
    panel = page.locator(".tuning-panel").first  # an exercise has another one
    panel.scroll_into_view_if_needed()
    runs = visit.runs / "tune" / "train_reviews"
    assert history(panel) == ["run-3", "run-2", "run"]

    handle, track = panel.locator(".noUi-handle").first, panel.locator(".noUi-base").first
    place, box, line = handle.get_attribute("aria-valuetext"), handle.bounding_box(), track.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(line["x"] + 0.8 * line["width"], box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    assert handle.get_attribute("aria-valuetext") != place
    page.wait_for_function(  # the number has two digits, so it is up to 0.022 from the handle's exponent
        "([box, handle]) => Math.abs(Math.log10(box.value) - handle.getAttribute('aria-valuetext')) < 0.023",
        arg=[number_box(panel, "learning_rate").element_handle(), handle.element_handle()],
    )
    type_into(panel, "learning_rate", "0.0007")
    type_into(panel, "n_rows", "1000")
    type_into(panel, "epochs", "6")
    panel.get_by_role("button", name="Start", exact=True).click()
    said(panel, "step ")
    assert visit.run_new("6 * 7") == "42"
    assert panel.get_by_role("button", name="Stop", exact=True).is_enabled(), "the other cell ended before the run"
    seen = drawn_step(panel)
    page.wait_for_function(
        "([panel, seen]) => Number(/at step (\\d+)/.exec(panel.querySelector('img').alt)?.[1]) > seen",
        arg=[panel.element_handle(), seen],
    )
    panel.screenshot(path=SCREENSHOTS / "tune_running.png")

    panel.get_by_role("button", name="Stop", exact=True).click()
    said(panel, "stopped after")
    assert history(panel)[0] == "run-4"
    run = json.loads((runs / "run-4.json").read_text())
    assert (run["outcome"], run["settings"]["learning_rate"]) == ("stopped", 0.0007)
    assert run["curve"][-1]["step"] < 6 * 1000 / 16, "most steps were left out"

    type_into(panel, "n_rows", "100")
    type_into(panel, "epochs", "1")
    panel.get_by_role("button", name="Start", exact=True).click()
    said(panel, "saved as run-5.json")
    assert history(panel)[0] == "run-5"
    assert drawn_step(panel) > 0
    assert panel.locator("img").get_attribute("alt").endswith("4 earlier runs in grey")

    panel.get_by_role("button", name="Use these settings").click()
    assert panel.get_by_label("settings of").input_value() == "run-5"
    page.wait_for_function("box => box.value", arg=panel.get_by_label("code").element_handle())
    code = panel.get_by_label("code").input_value()
    panel.screenshot(path=SCREENSHOTS / "tune.png")
    loss = json.loads((runs / "run-5.json").read_text())["metrics"]["train_loss"]
    again = visit.run_new(f"{code}\n[row['train_loss'] for row in result.state.log_history if 'train_loss' in row]")
    assert again == f"[{loss}]"

    type_into(panel, "epochs", "6")
    type_into(panel, "n_rows", "1000")
    panel.get_by_role("button", name="Start", exact=True).click()
    said(panel, "step ")
    visit.restart()
    run_all(visit)
    names = history(page.locator(".tuning-panel").first)
    assert {"run", "run-2", "run-3", "run-4", "run-5"} < set(names)


def test_an_error_and_the_keyboard(page, visit):
    more = [
        "mended = []\n\n\ndef train_broken(learning_rate=1e-3, callbacks=()):\n    return mended[0]",
        "from helpers import widgets\nwidgets.tune(train_broken, learning_rate=(1e-4, 1e-2))",
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [nbformat.v4.new_code_cell(source) for source in more]
    open_notebook(visit, nbformat.v4.new_notebook(cells=cells, metadata=kernel), "broken")
    panel = page.locator(".tuning-panel")
    panel.locator(".noUi-handle").focus()
    before = number_box(panel, "learning_rate").input_value()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([box, before]) => box.value !== before",
        arg=[number_box(panel, "learning_rate").element_handle(), before],
    )
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Start":
            break
    page.keyboard.press("Space")
    panel.locator("[role=alert]").wait_for(timeout=30_000)
    assert "IndexError" in panel.locator("[role=alert]").inner_text()
    assert "in train_broken" in panel.locator("[role=alert]").inner_text()
    panel.screenshot(path=SCREENSHOTS / "tune_error.png")

    visit.run_new("mended.append(True)")
    panel.get_by_role("button", name="Start", exact=True).click()
    said(panel, "finished after")
    assert panel.locator("[role=alert]").count() == 0


@pytest.mark.release
def test_decoding_by_hand(page, visit):
    open_section(visit, "more/02b_encoder_decoder", "## Decode by hand")
    panel = page.locator(".decoding-panel")
    type_into(panel, "temperature", "1.5")
    type_into(panel, "seed", "7")
    panel.get_by_role("button", name="Generate").click()
    n_rows(panel, 5)
    said(panel, ENDS["decoding"])
    assert "1.5" in panel.locator("tbody tr").first.inner_text()
    assert panel.locator("img").get_attribute("alt").startswith("next token: ")
    panel.screenshot(path=SCREENSHOTS / "decode.png")


@pytest.mark.release
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("03_full_fine_tuning", ["fitting"]),
        ("04_lora", ["tuning"]),
        ("05_qlora", ["fitting"]),
    ],
)
def test_the_panels_of_the_other_notebooks(name, kinds, page, visit):
    open_notebook(visit, None, name)
    visit.screenshot(SCREENSHOTS / f"{name}.png", whole=True)
    for kind in kinds:
        panel = page.locator(f".{kind}-panel").first
        if kind == "fitting":  # it predicts by itself when a control changes
            type_into(panel, "batch", "2")
            said(panel, re.compile(r", 2 x .* peak"))
        else:
            rows = panel.locator("tbody tr").count()
            panel.get_by_role("button", name=STARTS[kind], exact=True).click()
            n_rows(panel, rows + 1)
            said(panel, ENDS[kind])
        assert panel.locator("[role=alert]").count() == 0
        panel.screenshot(path=SCREENSHOTS / f"{name}_{kind}.png")
