"""Notebooks with real models: `make real` has run what they are now; here a quick part of it is run again."""

import re

import nbformat
import pytest
import real

from helpers import env
from notebooks import code_digest

DIAL = 'MODEL = "tiny-encoder"  # the dial\nSIZE = 1\nMODEL = str(MODEL)'


def small_notebook(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (DIAL, *sources)])


@pytest.mark.parametrize("name", real.results())
def test_the_real_run_is_of_this_code(name):
    """A run is stale when the code of its notebook has changed; its prose may."""
    found = real.results()[name]
    assert found["code"] == code_digest(nbformat.read(real.path_of(name), as_version=4)), "run `make real`"
    assert found["raised"] == []


NOT_YET = {"09_beyond_one_machine"}  # may only shrink


def test_every_notebook_that_has_a_real_model_has_run():
    assert set(real.MODELS) - set(real.results()) == NOT_YET, "run `make real`"


def test_the_dial_is_turned_in_the_first_cell_and_in_the_one_to_take_home():
    notebook = small_notebook("print(MODEL)", 'MODEL = "../data/models/tiny-encoder"  # a folder')
    notebook.cells[2].metadata["tags"] = ["take-home"]
    copy = real.turned(notebook, "tiny-decoder")
    assert copy.cells[0].source.splitlines()[0] == "MODEL = 'tiny-decoder'  # the dial"
    assert copy.cells[2].source == f"MODEL = {env.model_path('tiny-decoder')!r}  # a folder"
    assert notebook.cells[0].source == DIAL


def test_a_notebook_without_a_dial_is_refused():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os")])
    with pytest.raises(ValueError, match="0 lines set MODEL"):
        real.turned(notebook, "tiny-decoder")


@pytest.mark.slow
def test_a_cell_that_raises_is_counted_and_the_rest_runs(tmp_path):
    notebook = small_notebook("1 / 0", "print(MODEL)")
    found, copy = real.run(notebook, "tiny-decoder", tmp_path)
    assert [problem["cell"] for problem in found["raised"]] == [1]
    assert "ZeroDivisionError" in found["raised"][0]["error"]
    assert copy.cells[2].outputs[0].text == "tiny-decoder\n"
    assert found["cells"] == 3


A_FOLDER = pytest.param("a folder", marks=pytest.mark.release)  # test_env has the dial take one, in a second


@pytest.mark.slow
@pytest.mark.parametrize("model", ["minilm", A_FOLDER, "smollm2"])
def test_the_first_notebook_runs_on_other_models(model, tmp_path):
    """Few rows; a real encoder, a folder with a space in its name, and a decoder, for which it says what it does."""
    try:
        path = env.model_path("tiny-encoder" if model == "a folder" else model)
    except env.ModelNotFound as error:
        pytest.skip(str(error))
    if model == "a folder":
        model = tmp_path / "my models" / "the first one"
        model.parent.mkdir()
        model.symlink_to(path)
    notebook = nbformat.read(real.path_of("00_start_here"), as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r"range\(500\)", "range(64)", cell.source)
        cell.source = re.sub(
            r'("validation(?:_handwritten)?\.csv"\))(?!\.select)', r"\1.select(range(8, 40))", cell.source
        )
    found, copy = real.run(notebook, str(model), tmp_path)
    assert found["raised"] == []
    said = "".join(output.get("text", "") for output in copy.cells[1].outputs)
    assert ("it runs with tiny-encoder" if model == "smollm2" else "your numbers will differ") in said
