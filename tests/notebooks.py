"""Run the notebooks, write clean outputs, and make the copies that the tests run.

    python tests/notebooks.py execute notebooks/*.ipynb notebooks/more/*.ipynb  # in order; writes outputs back
    python tests/notebooks.py with-solutions .build      # copies in which each exercise is also solved and checked

Cells are found by their tags: `exercise` (placeholder), `check` (one expression, a call of `helpers.checks`),
`solution` (folded Markdown with one Python block), `sweep` (what a point of a sweep needs), `take-home`, `finding`
(Markdown that states what was measured: each number in it is shown by a cell above it), `nbval-check-output`.
"""

import base64
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from helpers import env

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
COSTS = env.DATA / "results" / "notebooks"
PROBE = "import resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"  # KiB on Linux
TIMES = re.compile(r"\d[\d,]*(\.\d+)?( |&nbsp;)?(ms|s|seconds|times|x|tokens/s|rows/s|GiB|MiB)\b")
ADDRESSES = re.compile(r"0x[0-9a-f]{6,}")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(notebook, tag):
    """Numbers of the cells that carry a tag."""
    return [i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]


def source_digest(notebook):
    """What the saved outputs belong to: sixteen hex digits over all cell sources."""
    sources = [[cell.cell_type, cell.source] for cell in notebook.cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def code_digest(notebook):
    """What a release has run: sixteen hex digits over the code cells and the solutions, whatever the prose says."""
    sources = [cell.source for cell in code_cells(notebook)]
    sources += [solution_code(notebook.cells[i]) for i in tagged(notebook, "solution")]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def solution_code(cell):
    """The Python block of a folded solution."""
    found = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"a solution holds one ```python block, found {len(found)}: {cell.source[:80]!r}")
    return found[0].strip()


def with_solutions(notebook):
    """A copy in which each exercise's check is followed by its solution and the same check, which must now pass."""
    copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
    checks, solutions = tagged(copy, "check"), tagged(copy, "solution")
    if len(checks) != len(solutions):
        raise ValueError(f"{len(checks)} check cells, but {len(solutions)} solutions")
    for check, solution in reversed(list(zip(checks, solutions, strict=True))):
        proof = f"result = {copy.cells[check].source.strip()}\nassert result.passed, result"
        copy.cells[solution + 1 : solution + 1] = [
            nbformat.v4.new_code_cell(solution_code(copy.cells[solution])),
            nbformat.v4.new_code_cell(proof),
        ]
    return copy


def clean(notebook):
    """Drop what changes from run to run and is not a result: ids of kernels, times, widget states, addresses."""
    digest = source_digest(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "source_digest": digest,
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
        kept = {key: value for key, value in cell.metadata.items() if key in ("tags", "jupyter")}
        cell.metadata = nbformat.from_dict(kept)
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            for kind, value in data.items():
                if isinstance(value, str) and kind.startswith("text/"):
                    data[kind] = ADDRESSES.sub("0x0", value)
                elif kind == "image/png":
                    data[kind] = small_png(value)
    return notebook


def small_png(picture):
    """The picture with at most 256 colours, which plots have anyway: a third of the bytes. Base64 in and out."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode == "P":
        return picture
    small = io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def same_but_for_times(new, old):
    """Whether two lists of outputs differ in nothing but measured times and sizes."""
    return TIMES.sub("#", json.dumps(new, sort_keys=True)) == TIMES.sub("#", json.dumps(old, sort_keys=True))


def execute(path, timeout=600):
    """Run a notebook in a fresh kernel, save it and its cost; outputs that differ only in times stay as they were."""
    notebook = nbformat.read(path, as_version=4)
    before = {cell.source: json.loads(json.dumps(cell.get("outputs", []))) for cell in code_cells(notebook)}
    started = time.monotonic()
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(path.parent)}}).execute()
    peak_gib = float(notebook.cells.pop().outputs[0].text)
    save_cost(path.stem, seconds=round(time.monotonic() - started), peak_gib=round(peak_gib, 1))
    clean(notebook)
    cells = code_cells(notebook)
    if all(same_but_for_times(cell.outputs, before.get(cell.source, [])) for cell in cells):
        for cell in cells:  # all of one run: outputs of two runs would not agree with each other
            cell.outputs = nbformat.from_dict(before.get(cell.source, []))
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


def save_cost(name, **cost):
    """Write `data/results/notebooks/NAME.json`, unless what is there says about the same."""
    path = COSTS / f"{name}.json"
    if path.exists():
        before = json.loads(path.read_text())["metrics"]
        if all(math.isclose(before[key], value, rel_tol=0.3, abs_tol=0.2) for key, value in cost.items()):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"settings": {}, "metrics": cost, "machine": env.machine(), "versions": env.versions()}
    path.write_text(json.dumps(found, indent=1) + "\n")


def main(command, *arguments):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if command == "execute":
        os.environ["HELPERS_RUNS"] = tempfile.mkdtemp()  # a panel's history starts empty, whatever was run here before
        for path in sorted(map(Path, arguments)):
            execute(path)
    elif command == "with-solutions":
        folder = Path(arguments[0])
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob("*.ipynb"), *folder.glob("more/*.ipynb")]:
            stale.unlink()
        (folder / "more").mkdir(exist_ok=True)
        for path in [*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("more/*.ipynb")]:
            copy = with_solutions(nbformat.read(path, as_version=4))
            nbformat.write(copy, folder / path.relative_to(NOTEBOOKS))
        for path in NOTEBOOKS.glob("*.py"):  # what a notebook imports
            shutil.copy(path, folder)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:] or ["help"])
