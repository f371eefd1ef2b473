"""Fills the tables of README.md, data/README.md and the model cards from the files and records they describe.

    python data/recipes/cards.py          # writes them
    python data/recipes/cards.py --check  # says which are out of date

A table stands between `<!-- NAME -->` and `<!-- end -->`; so no number in a card is typed by hand.
"""

import json
import re
import sys
from pathlib import Path

from helpers import data, metrics, record

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "data"
CARDS = ["README.md", "data/README.md", "data/models/tiny-encoder/README.md"]
NOTEBOOKS = {
    "00_start_here": ("What does fine-tuning change, and how would you know?", 10),
    "01_classification": ("How does a pre-trained encoder become a classifier, and is it any good?", 45),
}
FILES = {"reviews": ("csv", "label"), "support": ("jsonl", "intent"), "entities": ("json", "tags")}
PARTS = ("train", "validation", "validation_handwritten", "test_same", "test_unseen", "test_handwritten")


def counts(name):
    """Rows and words of each file of a data set."""
    ending, label = FILES[name]
    rows = []
    for part in PARTS:
        dataset = data.read(DATA / name / f"{part}.{ending}")
        texts = dataset["tokens"][:] if name == "entities" else [text.split() for text in dataset["text"][:]]
        kinds = (
            {tag[2:] for tags in dataset["tags"][:] for tag in tags if tag != "O"}
            if name == "entities"
            else set(dataset[label][:])
        )
        rows.append({"file": f"{part}.{ending}", "rows": len(dataset), "classes": len(kinds),
                     "words a row": f"{sum(map(len, texts)) / len(texts):.1f}"})  # fmt: skip
    return rows


def encoder_scores():
    """Accuracy on the test parts, mean and 95 % interval over the seeds."""
    runs = [run for run in record.load(DATA / "results" / "01_classification") if run["name"].startswith("parts-")]
    rows = []
    for part in PARTS[3:]:
        row = {"500 labels, sentiment": part}
        for start in ("pretrained", "random", "word counts"):
            values = [run["metrics"][part] for run in runs if run["settings"]["start"] == start]
            row[f"{start}, {len(values)} seeds"] = str(metrics.mean_interval(values))
        rows.append(row)
    return rows


def encoder_curve():
    """Loss on held-out documents over the tokens seen, for each phase on documents of its own kind."""
    rows = []
    for phase in json.loads((DATA / "models" / "tiny-encoder" / "training.json").read_text())["phases"]:
        for point in [*phase["log"][::4], phase["log"][-1]]:
            loss = f"{point['evaluation_loss']:.3f}"
            rows.append({"phase": phase["mixture"], "tokens": f"{point['tokens']:,}", "CPU s": point["cpu_s"],
                         "evaluation loss": loss})  # fmt: skip
    return rows


def encoder_facts():
    """Size and cost of the encoder."""
    folder = DATA / "models" / "tiny-encoder"
    training = json.loads((folder / "training.json").read_text())
    recipe, phases = training["recipe"], training["phases"]
    return [
        {"": "parameters", "value": f"{training['parameters']:,}"},
        {"": "file", "value": f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB, fp32"},
        {"": "layers, hidden size, heads", "value": f"{recipe['layers']}, {recipe['hidden']}, {recipe['heads']}"},
        {"": "vocabulary", "value": f"{recipe['vocabulary']:,} lower-case word pieces"},
        {"": "longest input", "value": f"{recipe['max_length']} tokens (pre-trained on up to 128)"},
        {"": "documents", "value": " + ".join(f"{phase['documents']:,}" for phase in recipe["phases"])},
        {"": "tokens seen", "value": " + ".join(f"{phase['tokens']:,}" for phase in phases)},
        {"": "CPU time", "value": f"{sum(phase['cpu_s'] for phase in phases) / 60:.0f} minutes"},
        {"": "seed", "value": recipe["seed"]},
    ]


def notebooks():
    """What each notebook asks and what it costs."""
    rows = []
    for name, (question, minutes) in NOTEBOOKS.items():
        cost = record.load(DATA / "results" / "notebooks" / f"{name}.json")["metrics"]
        title = name.replace("_", " ")
        rows.append({"notebook": f"[{title}](notebooks/{name}.ipynb)", "question": question, "your minutes": minutes,
                     "machine, s": cost["seconds"], "peak GiB": f"{cost['peak_gib']:.1f}"})  # fmt: skip
    return rows


TABLES = {
    "notebooks": notebooks,
    **{name: lambda name=name: counts(name) for name in FILES},
    "encoder-scores": encoder_scores,
    "encoder-curve": encoder_curve,
    "encoder-facts": encoder_facts,
}


def filled(text):
    """The card with each of its tables made anew."""

    def table(match):
        return f"<!-- {match[1]} -->\n{record.show(TABLES[match[1]]())}\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main():
    stale = []
    for name in CARDS:
        path = REPOSITORY / name
        text = path.read_text(encoding="utf-8")
        if filled(text) != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(filled(text), encoding="utf-8")
    if "--check" in sys.argv and stale:
        sys.exit(f"out of date: {', '.join(stale)}. Run `python data/recipes/cards.py`.")
    print("written:" if stale else "up to date", *stale)


if __name__ == "__main__":
    main()
