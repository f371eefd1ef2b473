"""`make real`: the notebooks run whole with real models, and what came of it as data/results/real.json.

    python tests/real.py                                     # those that have not run whole as they are now
    python tests/real.py 01_classification --model "my dir"  # one, with another model; nothing is recorded

The dial's line is replaced, in the take-home cell too, and no cell that raises ends the run: it is counted. A notebook
that ran whole is run again only when its code has changed, so a run that is broken off goes on. What the notebooks
showed lies in .build/real for reading.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from helpers import env
from notebooks import NOTEBOOKS, code_cells, code_digest, tagged

ROOT = NOTEBOOKS.parent
RESULT = ROOT / "data" / "results" / "real.json"
FOLDER = ROOT / ".build" / "real"
DIAL = re.compile(r"""(?m)^MODEL = ("[^"\n]*"|'[^'\n]*')""")
MODELS = {  # notebook: the real model that it runs with
    "00_start_here": "minilm",
    "01_classification": "minilm",
    "02_generation": "smollm2",
    "03_full_fine_tuning": "minilm",
    "04_lora": "minilm",
    "05_qlora": "smollm2",
    "06_multi_adapter": "smollm2",
    "07_domain_adaptation": "minilm",
    "08_break_it": "minilm",
    "09_beyond_one_machine": "smollm2",
    "10_trl_and_preferences": "smollm2",
    "11_sharing_and_serving": "smollm2",
}


def path_of(name):
    """The file of a notebook, by its name."""
    return next(path for path in NOTEBOOKS.rglob(f"{name}.ipynb") if ".ipynb_checkpoints" not in path.parts)


def turned(notebook, model):
    """A copy with this model in the dial's line, and in that of the take-home cell."""
    copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
    turn = {code_cells(copy)[0].source: model}
    turn |= {copy.cells[i].source: env.model_path(model) for i in tagged(copy, "take-home")}
    for cell in code_cells(copy):
        if cell.source in turn:
            line = f"MODEL = {turn[cell.source]!r}"
            cell.source, count = DIAL.subn(lambda _, line=line: line, cell.source)
            if count != 1:
                raise ValueError(f"{count} lines set MODEL to a name in a cell, not 1: {cell.source[:60]!r}")
    return copy


def run(notebook, model, folder, timeout=3600):
    """Run a notebook with a model to its end; what came of it, and the notebook with its outputs."""
    copy, started = turned(notebook, model), time.monotonic()
    NotebookClient(copy, timeout=timeout, allow_errors=True, resources={"metadata": {"path": str(folder)}}).execute()
    raised = [
        {"cell": i, "error": f"{output.ename}: {output.evalue}"[:200]}
        for i, cell in enumerate(copy.cells)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    seconds = round(time.monotonic() - started)
    found = {"model": Path(model).name, "code": code_digest(notebook), "seconds": seconds, "raised": raised}
    return found | {"cells": len(code_cells(copy)), "versions": env.versions(), "machine": env.machine()}, copy


def results():
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}


def ran_whole(name):
    """Whether a notebook has run whole as its code is now."""
    found = results().get(name, {"raised": True})
    return not found["raised"] and found["code"] == code_digest(nbformat.read(path_of(name), as_version=4))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python tests/real.py", description="Run notebooks whole with real models.")
    parser.add_argument("notebooks", nargs="*", help=f"of {', '.join(MODELS)}; left out: all that have not run whole")
    parser.add_argument("--model", help="another model than the real one of the notebook; nothing is recorded")
    given = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in given.notebooks or MODELS:
        if not given.notebooks and ran_whole(name):
            print(f"{name}: has run whole", flush=True)
            continue
        path = path_of(name)
        found, copy = run(nbformat.read(path, as_version=4), given.model or MODELS[name], path.parent)
        nbformat.write(copy, FOLDER / path.name)
        print(f"{name}: {found['seconds']} s, {len(found['raised'])} of {found['cells']} cells raised", flush=True)
        for problem in found["raised"]:
            print(f"  cell {problem['cell']}: {problem['error']}", flush=True)
        failed += [name] if found["raised"] else []
        if not given.model:
            RESULT.write_text(json.dumps(results() | {name: found}, indent=1) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"cells raised in {', '.join(failed)}; see {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
