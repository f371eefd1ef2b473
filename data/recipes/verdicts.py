"""What a project says of inputs that cannot work, and of sound ones: each is made by `helpers.new` and trained whole.

    python data/recipes/verdicts.py            # all cases that have no record yet; a few minutes each on two cores
    python data/recipes/verdicts.py shuffled   # some of them, again

A case is a change of the rows of a sample project, or of one of its settings; nothing else is set.
data/results/verdicts.json has each one's scores, its warnings as printed, and what was expected of them: words of which
one has to be there, or no warning at all for the sound ones. The rows are this repository's own.
"""

import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers import env, new

RECORD = env.DATA / "results" / "verdicts.json"
TEMPLATES = Path(new.__file__).parent / "templates"
PARTS = ("train", "validation", "test")


def sample(task):
    lines = {part: (TEMPLATES / task / "data" / f"{part}.jsonl").read_text().splitlines() for part in PARTS}
    return {part: [json.loads(line) for line in rows] for part, rows in lines.items()}


# ---- What can be wrong with rows -----------------------------------------------------------------------------------


def shuffled(column):
    """Every row has the target of some other row."""

    def change(rows):
        for part in rows.values():
            targets = [row[column] for row in part]
            random.Random(0).shuffle(targets)
            for row, target in zip(part, targets, strict=True):
                row[column] = target

    return change


def shifted(column):
    """Every row has the target of the row above it, as after a header that was read as a row."""

    def change(rows):
        for part in rows.values():
            targets = [row[column] for row in part]
            for row, target in zip(part, [targets[-1], *targets[:-1]], strict=True):
                row[column] = target

    return change


def constant(rows):
    for part in rows.values():
        for number, row in enumerate(part):
            row["text"] = f"Ticket {number}: see attachment."


def one_class(rows):
    for part in rows.values():
        for row in part:
            row["label"] = "positive"


def uneven(rows):
    """Of the rows to train on 97 % have one label."""
    kept = {"negative": 8, "positive": 8, "neutral": 480}
    for name, part in rows.items():
        share = 1 if name == "train" else 1 / 8
        by_label = {label: [row for row in part if row["label"] == label] for label in kept}
        part[:] = [row for label, count in kept.items() for row in by_label[label][: round(count * share) or 1]]


def unseen_label(rows):
    for row in rows["test"][:10]:
        row["label"] = "mixed"


def other_domain(rows):
    """The test rows are about something else: few words in common, and other ones carry the opinion."""
    lines = (env.DATA / "domain" / "test_unseen.jsonl").read_text(encoding="utf-8").splitlines()
    opinion = {"pass": "positive", "rework": "negative"}
    rows["test"] = [{"text": row["text"], "label": opinion[row["label"]]} for row in map(json.loads, lines)][:200]


def few(rows):
    for name, part in rows.items():
        del part[{"train": 12, "validation": 6, "test": 6}[name] :]


def no_entity(rows):
    for part in rows.values():
        for row in part:
            row["tags"] = ["O"] * len(row["tags"])


def whole(tags):
    """The tags with a beginning for each entity."""
    pairs = zip(tags, ["O", *tags], strict=False)
    return [f"B-{tag[2:]}" if tag[0] == "I" and before[2:] != tag[2:] else tag for tag, before in pairs]


def tags_one_on(rows):
    """Every tag stands one word too far to the right."""
    for row in (row for part in rows.values() for row in part):
        row["tags"] = whole(["O", *row["tags"][:-1]])


def tags_shuffled(rows):
    draw = random.Random(0)
    for row in (row for part in rows.values() for row in part):
        row["tags"] = whole(draw.sample(row["tags"], len(row["tags"])))


def answers_shuffled(rows):
    for part in rows.values():
        answers = [row["messages"][-1]["content"] for row in part]
        random.Random(0).shuffle(answers)
        for row, answer in zip(part, answers, strict=True):
            row["messages"][-1]["content"] = answer


def as_it_is(rows):
    """A sound input."""


CASES = {  # name: (task, change of the rows, settings, what has to be said; None: no warning)
    "sound sentiment": ("classification", as_it_is, {}, None),
    "sound tags": ("tokens", as_it_is, {}, None),
    "sound chat": ("generation", as_it_is, {}, None),
    "labels shuffled": ("classification", shuffled("label"), {}, "unrelated|not shown to be above|below a baseline"),
    "labels shifted by a row": ("classification", shifted("label"), {}, "unrelated|not shown|below a baseline"),
    "the same text in every row": ("classification", constant, {}, "unrelated|gives every|not shown|below"),
    "one class": ("classification", one_class, {}, "one class|one label|single|two"),
    "3 % of two classes": ("classification", uneven, {}, "uneven|class_weights|not shown|below"),
    "a label that training never saw": ("classification", unseen_label, {}, "is not one of"),
    "test rows of another domain": ("classification", other_domain, {}, "of another kind|below|not shown"),
    "twelve rows": ("classification", few, {}, "label more"),
    "rate far too high": ("classification", as_it_is, {"training.learning_rate": 1.0}, "lower|too high"),
    "rate far too low": ("classification", as_it_is, {"training.learning_rate": 1e-7}, "raise|too low"),
    "eight tokens of each text": ("classification", as_it_is, {"data.max_length": 8}, "longer than data.max_length"),
    "no entity": ("tokens", no_entity, {}, "no entity|O"),
    "tags shuffled": ("tokens", tags_shuffled, {}, "unrelated|no entity|below|not shown"),
    "tags one word on": ("tokens", tags_one_on, {}, "fit the word before"),
    "answers shuffled": ("generation", answers_shuffled, {}, "unrelated|below|not shown|no answer"),
}  # fmt: skip


def run(name):
    """The record of a case: what was printed of scores and warnings, or the error that refused it."""
    task, change, settings, wanted = CASES[name]
    rows = sample(task)
    change(rows)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{part}.jsonl" for part in PARTS]
        for file, part in zip(files, rows.values(), strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                place = new.project(task, Path(folder) / "mine", data=files, settings=settings)
        except ValueError as error:
            said = str(error).replace(str(folder), "")
            return {
                "refused": said,
                "expected": wanted,
                "right": bool(wanted and re.search(wanted, said, re.IGNORECASE)),
            }
        done = subprocess.run([sys.executable, "train.py"], cwd=place, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            return {"failed": done.stderr[-500:].replace(str(folder), ""), "expected": wanted, "right": False}
        record = json.loads((place / "runs" / "main.json").read_text(encoding="utf-8"))
    warnings, metric = record["warnings"], record["metric"]
    right = not warnings if wanted is None else any(re.search(wanted, one, re.IGNORECASE) for one in warnings)
    scores = {part: round(record["metrics"][f"{part}_{metric}"], 3) for part in ("validation", "test")}
    return {"metric": metric, **scores, "warnings": warnings, "expected": wanted, "right": right}


def main(names):
    env.quiet()
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for name in [case for case in CASES if any(word in case for word in names)] if names else CASES:
        if names or name not in known:
            known[name] = run(name)
            text = json.dumps({case: known[case] for case in CASES if case in known}, indent=1, ensure_ascii=False)
            RECORD.write_text(text + "\n", encoding="utf-8")
            print(name, known[name], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
