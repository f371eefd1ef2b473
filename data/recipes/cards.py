"""Fills the tables and pictures of README.md, data/README.md and the model cards from what they describe.

    python data/recipes/cards.py          # writes them
    python data/recipes/cards.py --check  # says which are out of date

A table or picture stands between `<!-- NAME -->` and `<!-- end -->`; so no number in a card is typed by hand. A picture
is one of a notebook's outputs, with its text for those who do not see it.
"""

import base64
import json
import re
import sys
from pathlib import Path

import first_try
import public

from helpers import data, metrics, record

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "data"
MODELS = ("encoder", "decoder", "seq2seq")  # the kinds whose models are in the repository
CARDS = ["README.md", "data/README.md", *(f"data/models/tiny-{kind}/README.md" for kind in MODELS)]
NOTEBOOKS = {
    "00_start_here": ("What does fine-tuning change, and how would you know?", 15),
    "01_classification": ("How does a pre-trained encoder become a classifier, and is it any good?", 60),
    "02_generation": ("Which tokens count when a model learns to write?", 60),
    "03_full_fine_tuning": ("What does it cost to change every weight?", 60),
    "04_lora": ("How few weights can you train, and what does it really buy?", 75),
    "05_qlora": ("What does a four-bit base cost you?", 60),
    "06_multi_adapter": ("How many skills can one base carry, and what do they cost?", 60),
    "07_domain_adaptation": ("Does reading on without labels help in a new domain, and when?", 60),
    "08_break_it": ("It does not work: where do you look first?", 60),
    "09_beyond_one_machine": ("What changes when one GPU is not enough?", 75),
    "10_trl_and_preferences": ("What does the ready-made trainer do, and can a model learn from comparisons?", 60),
    "11_sharing_and_serving": ("It works here: how do others use it?", 75),
}
FILES = {  # ending, the columns to read, and what is to be found
    "reviews": ("csv", ["text"], "label"),
    "support": ("jsonl", ["text"], "intent"),
    "entities": ("json", ["tokens"], "tags"),
    "questions": ("json", ["passage", "question"], "answer"),
    "titles": ("json", ["review"], "title"),
    "rewrite": ("json", ["plain"], "polite"),
    "chat": ("jsonl", ["messages"], None),
    "domain": ("jsonl", ["text"], "label"),
}
PARTS = ("train", "validation", "validation_handwritten", "test_same", "test_unseen", "test_handwritten")


def counts(name):
    """Rows, classes or different answers, and words, of each file of a data set."""
    ending, columns, wanted = FILES[name]
    rows = []
    for part in PARTS:
        if not (DATA / name / f"{part}.{ending}").exists():
            continue
        dataset = data.read(DATA / name / f"{part}.{ending}")
        words = sum(len(value.split()) for row in dataset for value in contents(row, columns))
        row = {"file": f"{part}.{ending}", "rows": len(dataset), "words a row": f"{words / len(dataset):.1f}"}
        if name == "entities":
            row["classes"] = len({tag[2:] for tags in dataset["tags"][:] for tag in tags if tag != "O"})
        elif name in ("reviews", "support", "domain"):
            row["classes"] = len(set(dataset[wanted][:]))
        elif wanted:
            row["words an answer"] = f"{sum(len(text.split()) for text in dataset[wanted][:]) / len(dataset):.1f}"
        rows.append(row)
    if (text := DATA / name / "unlabelled.txt").exists():
        lines = text.read_text(encoding="utf-8").splitlines()
        words = sum(len(line.split()) for line in lines)
        rows.append({"file": text.name, "rows": len(lines), "words a row": f"{words / len(lines):.1f}"})
    return rows


def contents(row, columns):
    """The texts of a row: of its columns, its tokens, or its messages."""
    for column in columns:
        for value in [row[column]] if isinstance(row[column], str) else row[column]:
            yield value if isinstance(value, str) else value["content"]


def encoder_scores():
    """Accuracy on the test parts of the reviews, mean and 95 % interval over three seeds, of each model on record."""
    rows = []
    for part in [*PARTS[3:], "test_fresh"]:
        row = {"500 labels, sentiment": part}
        for folder in sorted((DATA / "results" / "01_classification").iterdir(), reverse=True):
            runs = [run for run in record.load(folder) if run["settings"].get("task") == "reviews"]
            for start in ("pretrained", "random", "word counts"):
                scored = [run for run in runs if run["settings"]["start"] == start and part in run["metrics"]]
                values = [run["metrics"][part] for run in scored]
                if values and (start == "pretrained" or folder.name == "tiny-encoder"):
                    row[f"{folder.name}, {start}" if start != "word counts" else start] = str(
                        metrics.mean_interval(values)
                    )
        rows.append(row)
    return rows


def writer_scores(kind):
    """What a model that writes scores on the test parts, mean and 95 % interval over the seeds."""
    runs = record.load(DATA / "results" / "02_generation" / f"tiny-{kind}")
    runs = [run for run in runs if run["name"].startswith("parts-")]
    rows = []
    for task in dict.fromkeys(run["settings"]["task"] for run in runs):
        for start in ("pretrained", "random"):
            same = [run for run in runs if run["settings"]["task"] == task]
            same = [run for run in same if run["settings"].get("start", "pretrained") == start]
            if not same:
                continue
            score = "ROUGE-L" if "summaries" in task else "exact match"
            row = {
                "task": task.removeprefix("seq2seq "),
                "score": score,
                "start": f"{start}, {len(same)} seed{'s' * (len(same) > 1)}",
            }
            row["rate"] = same[0]["settings"]["learning_rate"]
            for part in PARTS[3:]:
                values = [run["metrics"][part] for run in same]
                row[part] = str(metrics.mean_interval(values)) if len(values) > 1 else f"{values[0]:.2f}"
            rows.append(row)
    return rows


def four_bit():
    """The decoder's loss in fp32 and in NF4."""
    found = record.load(DATA / "results" / "models" / "tiny-decoder-nf4.json")
    measured, tokens = found["metrics"], found["settings"]["tokens"]
    return [
        {"weights": name, "loss": f"{measured[f'loss_{key}']:.4f}", "MB": f"{measured[f'bytes_{key}'] / 1e6:.1f}",
         "loss rises by": "" if key == "fp32" else f"{measured['rise']:.2%}", "tokens": f"{tokens:,}"}
        for name, key in (("fp32", "fp32"), ("NF4", "nf4"))
    ]  # fmt: skip


def adapter_scores():
    """The adapters of the repository: what each was trained on, and its exact match on 100 rows of `test_same`."""
    rows = []
    for run in record.load(DATA / "results" / "06_multi_adapter" / "tiny-decoder"):
        if run["name"].startswith("train-") and run["settings"]["seed"] == 0:
            name = run["settings"]["task"]
            file = DATA / "models" / "adapters" / name / "adapter_model.safetensors"
            rows.append({"adapter": name, "exact match": run["metrics"]["test_same"], "kB": file.stat().st_size / 1000,
                         "CPU s": round(run["seconds"])})  # fmt: skip
    return rows


def training_of(name):
    return json.loads((DATA / "models" / name / "training.json").read_text())


def curve(name):
    """Loss on held-out documents over the tokens seen, for each phase on documents of its own kind."""
    rows = []
    for phase in training_of(name)["phases"]:
        for point in [*phase["log"][:-1:4], phase["log"][-1]]:
            loss = f"{point['evaluation_loss']:.3f}"
            rows.append({"phase": phase["mixture"], "tokens": f"{point['tokens']:,}", "CPU s": point["cpu_s"],
                         "evaluation loss": loss})  # fmt: skip
    return rows


def facts(name):
    """Size and cost of a model."""
    training, file = training_of(name), DATA / "models" / name / "model.safetensors"
    recipe, phases = training["recipe"], training["phases"]
    pieces = "lower-case word pieces" if name == "tiny-encoder" else "byte-level BPE"
    return [
        {"": "parameters", "value": f"{training['parameters']:,}"},
        {"": "file", "value": f"{file.stat().st_size / 1e6:.1f} MB, fp32"},
        {"": "layers, hidden size, heads", "value": f"{recipe['layers']}, {recipe['hidden']}, {recipe['heads']}"},
        {"": "vocabulary", "value": f"{recipe['vocabulary']:,}, {pieces}"},
        {
            "": "longest input",
            "value": f"{recipe['max_length']} tokens (pre-trained on up to {recipe.get('longest', 128)})",
        },
        {"": "documents", "value": " + ".join(f"{phase['documents']:,}" for phase in recipe["phases"])},
        {"": "tokens seen", "value": " + ".join(f"{phase['tokens']:,}" for phase in phases)},
        {"": "CPU time", "value": f"{sum(phase['cpu_s'] for phase in phases) / 60:.0f} minutes"},
        {"": "seed", "value": recipe["seed"]},
    ]


def notebooks():
    """What each notebook asks, what it costs, and with which real model it has run whole."""
    rows, real = [], json.loads((DATA / "results" / "real.json").read_text(encoding="utf-8"))
    for name, (question, minutes) in NOTEBOOKS.items():
        cost = record.load(DATA / "results" / "notebooks" / f"{name}.json")["metrics"]
        title, run = name.replace("_", " "), real.get(name, {"raised": True})
        rows.append({"notebook": f"[{title}](notebooks/{name}.ipynb)", "question": question, "your minutes": minutes,
                     "machine, s": cost["seconds"], "peak GiB": f"{cost['peak_gib']:.1f}",
                     "whole with": "—" if run["raised"] else run["model"]})  # fmt: skip
    return rows


TABLES = {
    "notebooks": notebooks,
    **{name: lambda name=name: counts(name) for name in FILES},
    "encoder-scores": encoder_scores,
    "decoder-scores": lambda: writer_scores("decoder"),
    "seq2seq-scores": lambda: writer_scores("seq2seq"),
    "four-bit": four_bit,
    "adapters": adapter_scores,
    "public-sweep": lambda: public.table("validation", (0,)),
    "public-test": lambda: public.table("test", public.SEEDS),
    "public-published": public.published,
    "first-try": first_try.table,
    **{f"{kind}-curve": lambda kind=kind: curve(f"tiny-{kind}") for kind in MODELS},
    **{f"{kind}-facts": lambda kind=kind: facts(f"tiny-{kind}") for kind in MODELS},
}


PICTURES = {  # name, of the file too: the notebook, and how the text for those who do not see the picture begins
    "levers": ("03_full_fine_tuning", "Peak memory in MiB with each lever"),
    "will_it_fit": ("05_qlora", "Llama-3.1-8B LoRA"),
}


def picture(name):
    """The PNG and the text of a picture that a notebook shows."""
    notebook, start = PICTURES[name]
    cells = json.loads((REPOSITORY / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
        if alt.startswith(start):
            return base64.b64decode(output["data"]["image/png"]), alt
    raise ValueError(f'{notebook} shows no picture whose text begins with "{start}".')


def image(name):
    return REPOSITORY / "notebooks" / "images" / f"{name}.png"


def filled(text):
    """The card with each of its tables and pictures made anew."""

    def made(match):
        name = match[1]
        if name in PICTURES:
            content = f"![{picture(name)[1]}]({image(name).relative_to(REPOSITORY).as_posix()})"
        else:
            content = record.show(TABLES[name]())
        return f"<!-- {name} -->\n{content}\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def main():
    stale = []
    for name in CARDS:
        path = REPOSITORY / name
        text = path.read_text(encoding="utf-8")
        if filled(text) != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(filled(text), encoding="utf-8")
    for name in PICTURES:
        if not image(name).exists() or image(name).read_bytes() != picture(name)[0]:
            stale.append(image(name).name)
            if "--check" not in sys.argv:
                image(name).write_bytes(picture(name)[0])
    if "--check" in sys.argv and stale:
        sys.exit(f"out of date: {', '.join(stale)}. Run `python data/recipes/cards.py`.")
    print("written:" if stale else "up to date", *stale)


if __name__ == "__main__":
    main()
