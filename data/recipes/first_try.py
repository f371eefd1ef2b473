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
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers import data, env, new

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
    """The set's three files; with fewer rows to train on, copies of so many, and as many to validate."""
    given = {path.stem: path for path in sorted((Path(folder) / name).iterdir())}
    if not n_rows:
        return [given[part] for part in PARTS]
    files = []
    for part in PARTS:
        rows = data.read(given[part])
        if part != "test" and len(rows) > n_rows:
            rows = rows.shuffle(seed=0).select(range(n_rows))
        files.append(place / f"{part}.jsonl")
        rows.to_json(str(files[-1]), force_ascii=False)
    return files


def run(folder, name, n_rows, model):
    """The record of one project."""
    _, task, columns = SETS[name]
    env.quiet()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        files = files_of(folder, name, n_rows, place)
        with contextlib.redirect_stdout(io.StringIO()):
            project = new.project(task, place / "mine", data=files, model=model, **columns)
        started = time.monotonic()
        done = subprocess.run([sys.executable, "train.py"], cwd=project, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        record = json.loads((project / "runs" / "main.json").read_text(encoding="utf-8"))
        config = new._script(project / "train.py").read_config()["training"]
    metric, compared = record["metric"], record["baselines"]["test"]
    return {
        "rows": record["rows"],
        "metric": metric,
        "test": record["metrics"][f"test_{metric}"],
        "baselines": compared,
        **({"bleu": record["bleu"]["test"]} if "bleu" in record else {}),
        "warnings": [re.sub(r'“[^”]*”|"[^"]*"', "…", one) for one in record["warnings"]],
        "learning_rate": config["learning_rate"],
        "epochs": config["num_train_epochs"],
        "seconds": round(time.monotonic() - started),
        "versions": env.versions(),
    }


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
