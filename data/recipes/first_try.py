"""What a user gets at the first try: projects of public sets, with nothing set but the files and the model.

    python data/recipes/first_try.py --data FOLDER                        # what has no record yet
    python data/recipes/first_try.py --data FOLDER --sets wnut17 --rows 100

`helpers.new` makes each project from the set's files, with so many rows to train on, and its train.py runs to the end.
FOLDER holds one folder a set, with train, validation and test. data/results/public/first_try.json has the model's score
on the test rows beside those of the project's own baselines, the lead with its interval, and what the project said
looks wrong: figures and our own sentences, no row of the data. Rows are drawn with seed 0, and trained with seed 0.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers import data, env, metrics, new

WORK = env.DATA.parent / ".build" / "first_try"
RECORD = env.DATA / "results" / "public" / "first_try.json"
FACTS = "Write a sentence from these facts: {facts}"
SETS = {  # name: model, task, and the names of the columns
    "movie_sentences": ("minilm", "classification", dict(text="sentence", label="opinion")),
    "clinc150": ("minilm", "classification", dict(text="query", label="intent")),
    "ag_news": ("minilm", "classification", dict(text="text", label="label")),
    "wnut17": ("minilm", "tokens", dict(tokens="tokens", tags="tags")),
    "e2e": ("smollm2", "generation", dict(prompt=FACTS, answer="sentence")),
}
ROWS = (100, 300, 1000)  # to train on; 0 for all
PARTS = ("train", "validation", "test")


def files_of(folder, name, n_rows, place):
    """The set's three files; with fewer rows to train on, copies of so many, and as many to validate; and its labels,
    as so few rows may not have them all."""
    _, task, columns = SETS[name]
    column, labels = columns.get("label") or columns.get("tags"), {}
    given = {path.stem: path for path in sorted((Path(folder) / name).iterdir())}
    if not n_rows:
        return [given[part] for part in PARTS], labels
    files = []
    for part in PARTS:
        rows = data.read(given[part])
        if part == "train" and column:
            labels = {"labels": sorted(set(itertools.chain(*rows[column]) if task == "tokens" else rows[column]))}
        if part != "test" and len(rows) > n_rows:
            rows = rows.shuffle(seed=0).select(range(n_rows))
        files.append(place / f"{part}.jsonl")
        rows.to_json(str(files[-1]), force_ascii=False)
    return files, labels


def run(folder, name, n_rows, model):
    """The record of one project. It stays in .build until it has ended, so a run that was broken off goes on."""
    _, task, columns = SETS[name]
    env.quiet()
    place = WORK / f"{name}-{n_rows}-{model}"
    if not (project := place / "mine").exists():
        place.mkdir(parents=True, exist_ok=True)
        files, labels = files_of(folder, name, n_rows, place)
        with contextlib.redirect_stdout(io.StringIO()):
            new.project(task, project, data=files, model=model, **columns, **labels)
    done = subprocess.run([sys.executable, "train.py"], cwd=project, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    record = json.loads((project / "runs" / "main.json").read_text(encoding="utf-8"))
    config = new._script(project / "train.py").read_config()["training"]
    metric, compared = record["metric"], record["baselines"]["test"]
    found = {
        "rows": record["rows"],
        "metric": metric,
        "test": record["metrics"][f"test_{metric}"],
        "baselines": compared,
        **({"bleu": record["bleu"]["test"]} if "bleu" in record else {}),
        "warnings": [re.sub(r'“[^”]*”|"[^"]*"|(?<=: )(?:[^ ,]+, ){5,}.*', "…", one) for one in record["warnings"]],
        "learning_rate": config["learning_rate"],
        "epochs": config["num_train_epochs"],
        "seconds": record["seconds"],
        "versions": env.versions(),
    }
    shutil.rmtree(place)  # all of the record is there: nothing of the run can be lost any more
    return found


def table():
    """A line a project: its score on the test rows, its strongest baseline, the lead, and what it said looks wrong."""
    lines, foreign = [], RECORD.with_name("foreign.json")  # of foreign.py
    known = json.loads(RECORD.read_text(encoding="utf-8"))
    if foreign.exists():
        others = json.loads(foreign.read_text(encoding="utf-8"))
        known |= {f"{name} ({run['from']}), all rows, {run['model']}": run for name, run in others.items()}
    for key, run in known.items():
        name, _, model = key.split(", ")
        others = {name: one for name, one in run["baselines"].items() if "lead" in one}
        best = max(others, key=lambda name: others[name]["score"])
        lead = metrics.Interval(*(100 * others[best][part] for part in ("lead", "lead_low", "lead_high")))
        n_rows = f"{run['rows']['train']:,}"
        lines.append({"set": name, "training rows": n_rows, "model": model, "metric": run["metric"],
                      "score": f"{run['test']:.3f}", "strongest baseline": f"{others[best]['score']:.3f}, {best}",
                      "ahead, points": f"{lead:+.1f}", "warnings": len(run["warnings"])})  # fmt: skip
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of the sets")
    parser.add_argument("--model", help="left out: minilm, and smollm2 where texts are written")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    given = parser.parse_args()
    for n_rows in given.rows:
        for name in given.sets:
            known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
            model = given.model or SETS[name][0]
            key = f"{name}, {n_rows or 'all'} rows, {model}"
            if key in known:
                continue
            found = run(given.data, name, n_rows, model)
            RECORD.write_text(json.dumps(known | {key: found}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(key, found["metric"], round(found["test"], 3), found["baselines"], found["warnings"], flush=True)


if __name__ == "__main__":
    main()
