"""Writes the generated parts of the data sets, always the same bytes.

    python data/recipes/labelled.py          # refuses when a file is there and differs
    python data/recipes/labelled.py --check  # compares only

Some words are held out: no labelled text of train, validation or test_same contains one, while the corpus for
pre-training is full of them. The part `test_unseen` carries its label by held-out words alone. The `*_handwritten`
files are written by hand and are not touched. The data sets with texts for answers are made in `pairs.py`.
"""

import csv
import io
import json
import random
import re
import sys
from pathlib import Path

import pairs
from writer import SENTIMENTS, Writer

DATA = Path(__file__).parents[1]
SEED = 2026
SIZES = {
    "reviews": dict(train=3000, validation=600, test_same=600, test_unseen=600),
    "support": dict(train=2000, validation=500, test_same=500, test_unseen=500),
    "entities": dict(train=2000, validation=400, test_same=400, test_unseen=400),
}
STOP = {
    *("a", "an", "the", "my", "your", "our", "of", "for", "to", "in", "on", "with", "it", "is", "are", "was", "this"),
    *("that", "about", "and", "or", "i", "me", "not", "no", "be", "by", "from", "at"),
}


def words(text):
    """Lower-case words, slots left out."""
    return re.findall(r"[a-z']+", re.sub(r"<\w+>", " ", text).lower())


def hold_out(entries, rng, share=0.4):
    """A random share of the single words of a list, always the same ones."""
    single = sorted(entry for entry in entries if entry.isalpha())
    return set(rng.sample(single, round(len(single) * share)))


def split_lists(writer, names, rng):
    """The writer's lists for labelled text, the lists of held-out words, and those words."""
    held = {name: hold_out(writer.lists[name], rng) for name in names}
    seen = {name: [entry for entry in writer.lists[name] if entry not in held[name]] for name in names}
    return seen, {name: sorted(entries) for name, entries in held.items()}, set().union(*held.values())


def text_key(row):
    """What makes two rows the same: their words."""
    return " ".join(words(row.get("text") or " ".join(row["tokens"])))


def reviews():
    rng = random.Random(SEED)
    writer = Writer(SEED)
    literal = words(" ".join(line for bank in writer.reviews.values() for lines in bank.values() for line in lines))
    common = {word for word in set(literal) if literal.count(word) > 8}  # forbidding these would empty the banks
    lists = ["pos", "neg", "neu"]
    writer.lists.update({name: [w for w in writer.lists[name] if w not in common] for name in lists})
    seen, held, forbidden = split_lists(writer, lists, rng)

    def write(part, i):
        writer.lists.update(held if part == "test_unseen" else seen)
        review = writer.review(SENTIMENTS[i % 3], only_lists=part == "test_unseen")
        return {key: review[key] for key in ("text", "label", "category", "title")}

    return pairs.collect(write, SIZES["reviews"], rng, text_key, forbidden)


def support():
    rng = random.Random(SEED)
    writer = Writer(SEED)
    intents, banks = list(writer.support), writer.support
    held = {intent: sorted(rng.sample(sorted(banks[intent]["cues"]), 8)) for intent in intents}
    seen = {intent: [cue for cue in banks[intent]["cues"] if cue not in held[intent]] for intent in intents}
    seen_words = {word for cues in seen.values() for cue in cues for word in words(cue)} | STOP
    forbidden = {word for cues in held.values() for cue in cues for word in words(cue)} - seen_words
    held = {intent: [cue for cue in cues if forbidden.intersection(words(cue))] for intent, cues in held.items()}

    def write(part, i):
        for intent in intents:
            banks[intent]["cues"] = (held if part == "test_unseen" else seen)[intent]
        return writer.message(intents[i % len(intents)], only_cues=part == "test_unseen")

    return pairs.collect(write, SIZES["support"], rng, text_key, forbidden)


def entities():
    rng = random.Random(SEED)
    writer = Writer(SEED)
    names = {"PER": ["first", "last"], "LOC": ["LOC", "town"], "ORG": ["ORG", "company"]}
    lists = {**writer.lists, **writer.names}
    held, seen = {}, {}
    for name in [name for group in names.values() for name in group]:
        seen[name], held[name] = pairs.parted(lists[name], rng, share=0.4)
    seen_words = {word for entries in seen.values() for entry in entries for word in words(entry)}
    held = {name: sorted(e for e in entries if not seen_words.intersection(words(e))) for name, entries in held.items()}

    def write(part, i):
        for name, entries in (held if part == "test_unseen" else seen).items():
            (writer.names if name in writer.names else writer.lists)[name] = entries
        return writer.tagged()

    return pairs.collect(write, SIZES["entities"], rng, text_key)


def as_csv(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_json(rows):
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def files():
    """Every generated file as `{path: text}`."""
    makers = [
        *((reviews, "csv", as_csv), (support, "jsonl", as_jsonl), (entities, "json", as_json)),
        *((pairs.questions, "json", as_json), (pairs.titles, "json", as_json)),
        *((pairs.rewrite, "json", as_json), (pairs.chat, "jsonl", as_jsonl)),
    ]
    return {
        DATA / make.__name__ / f"{part}.{ending}": form(rows)
        for make, ending, form in makers
        for part, rows in make().items()
    }


def main(made):
    differing = []
    for path, text in made.items():
        if path.exists():
            if path.read_text(encoding="utf-8") != text:
                differing.append(path.relative_to(DATA).as_posix())
        elif "--check" in sys.argv:
            differing.append(path.relative_to(DATA).as_posix())
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print("wrote", path.relative_to(DATA))
    if differing:
        sys.exit(
            f"data/ has other rows than the recipe makes: {', '.join(differing)}. Delete them to have them made anew."
        )


if __name__ == "__main__":
    main(files())
