"""Score notebook 01's comparison on `data/reviews/test_fresh.csv`, which nobody had looked at before.

    python data/recipes/fresh.py    # nine runs of 500 labels; records in data/results/01_classification/fresh-*.json

The cells tagged `sweep` of the notebook do the work, at the rates that its validation split chose; a record that is
there is not written again.
"""

import itertools
from pathlib import Path

import nbformat

from helpers import data, env, metrics, record, text

RESULTS = env.DATA / "results" / "01_classification" / "tiny-encoder"
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_classification.ipynb"
STARTS = {"pretrained": 1e-3, "random": 2e-3, "word counts": None}  # and the rate that validation chose for each
PART = "test_fresh"


def main():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "sweep" in cell.metadata.get("tags", [])]
    space = {}
    exec("\n\n".join(cell.source for cell in cells), space)
    labels = space["splits"]["train"].features["label"]
    rows = data.read(env.DATA / "reviews" / f"{PART}.csv").cast_column("label", labels)
    space["splits"][PART] = rows
    space["examples"][PART] = text.tokenize(rows, space["tokenizer"], max_length=128)
    for start, seed in itertools.product(STARTS, range(3)):
        name = f"fresh-{start.replace(' ', '-')}-{seed}"
        if not (RESULTS / f"{name}.json").exists():
            point = dict(start=start, seed=seed, learning_rate=STARTS[start], parts=[PART])
            about = dict(machine=env.machine(), versions=env.versions())
            found = space["sweep_point"](**point)
            record.save(RESULTS, name, settings={**point, "model": space["MODEL"]}, metrics=found, **about)
        print(name, record.load(RESULTS / f"{name}.json")["metrics"], flush=True)
    runs = [run for run in record.load(RESULTS) if run["name"].startswith("fresh-")]
    for start in STARTS:
        print(start, metrics.mean_interval([r["metrics"][PART] for r in runs if r["settings"]["start"] == start]))


if __name__ == "__main__":
    main()
