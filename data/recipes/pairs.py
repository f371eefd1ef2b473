"""Writes the rows of `data/questions`, `data/titles`, `data/rewrite` and `data/chat`: a text in, a text out.

Their wording comes from banks of its own (`banks/tasks`), which the corpus for pre-training never uses. The part
`test_unseen` has, on top of that, wordings that no row of train, validation or test_same has, and other names and
adjectives in them. `labelled.py` writes the files.
"""

import random

from grammar import BANKS, read_bank
from writer import Writer

SEED = 2027
PARTS = ("train", "validation", "test_same", "test_unseen")
SIZES = {
    "questions": dict(zip(PARTS, (2000, 300, 300, 300), strict=True)),
    "titles": dict(zip(PARTS, (2000, 300, 300, 300), strict=True)),
    "rewrite": dict(zip(PARTS, (1200, 200, 200, 200), strict=True)),
    "chat": dict(zip(PARTS[:3], (600, 100, 100), strict=True)),
}
SYSTEM = "You are Pip, the assistant of Harbour Library."


def parted(entries, rng, share=0.33):
    """`(seen, held)`: a random share of the entries is held out for test_unseen, always the same ones."""
    entries = sorted(set(entries))
    held = set(rng.sample(entries, round(len(entries) * share)))
    return [entry for entry in entries if entry not in held], sorted(held)


def collect(write, sizes, rng, key=lambda row: str(row).lower(), forbidden=frozenset()):
    """Different rows for every part, shuffled; `write(part, i)` makes one.

    Two rows with one `key` are the same. Only test_unseen may have a forbidden word in its key.
    """
    parts, seen = {}, set()
    for part, count in sizes.items():
        rows, kept_out = [], frozenset() if part == "test_unseen" else forbidden
        for _ in range(200 * count):
            row = write(part, len(rows))
            found = key(row)
            if found not in seen and not kept_out.intersection(found.split()):
                seen.add(found)
                rows.append(row)
            if len(rows) == count:
                break
        else:
            raise ValueError(f"only {len(rows)} of {count} different rows for {part}: the bank is too small.")
        rng.shuffle(rows)
        parts[part] = rows
    return parts


def bank(name):
    return read_bank(BANKS / "tasks" / f"{name}.txt")


def questions():
    """A passage about somebody or something invented, a question, and the answer as it stands in the passage."""
    rng, writer = random.Random(SEED), Writer(SEED)
    wordings = {kind: parted(lines, rng) for kind, lines in bank("questions").items()}
    lists = {name: parted(writer.lists[name], rng) for name in ("first", "last", "town", "company", "thing")}

    def write(part, i):
        unseen = part == "test_unseen"
        writer.lists.update({name: sides[unseen] for name, sides in lists.items()})
        writer.world["facts"] = {kind: sides[unseen] for kind, sides in wordings.items()}
        passage, asked = writer.facts()
        question, answer = writer.choose(asked)
        if answer not in passage or passage.count(answer) > 1:  # "a" became "an", or two facts share a word
            return write(part, i)
        return dict(passage=passage, question=question, answer=answer)

    return collect(write, SIZES["questions"], rng)


def titles():
    """A review with its title ("Flimsy kettle") and a summary of one sentence; both follow from the text."""
    rng, writer = random.Random(SEED), Writer(SEED)
    wordings = {kind: parted(lines, rng) for kind, lines in bank("titles").items()}
    adjectives = {sign: [word for word in writer.lists[sign] if word.isalpha()] for sign in ("neg", "neu", "pos")}
    adjectives = {sign: parted(words, rng) for sign, words in adjectives.items()}

    def write(part, i):
        unseen = part == "test_unseen"
        category = writer.choose(list(writer.reviews))
        item = writer.choose(writer.reviews[category]["items"])
        aspect = writer.choose(
            [a for a in writer.reviews[category]["aspects"] if not a.endswith("s") and a not in item]
        )
        signs = [writer.choose(["neg", "neu", "pos"]) for _ in range(2)]
        one, other = (writer.choose(adjectives[sign][unseen]) for sign in signs)
        if one == other:
            return write(part, i)
        slots = dict(item=item, adj=one, aspect=aspect, adj2=other)
        told = [writer.sentence(writer.choose(wordings[kind][unseen]), **slots) for kind in ("item", "aspect")]
        writer.random.shuffle(told)
        for _ in range(writer.choose([0, 1, 1, 2])):
            place = int(writer.random.random() * (len(told) + 1))
            told.insert(place, writer.sentence(writer.choose(wordings["filler"][unseen])))
        joined = "and" if signs[0] == signs[1] else "but"
        summary = f"The {item} is {one} {joined} the {aspect} is {other}."
        return dict(review=" ".join(told), title=f"{one.capitalize()} {item}", summary=summary)

    return collect(write, SIZES["titles"], rng)


def rewrite():
    """A plain message and the same in polite words."""
    rng, writer = random.Random(SEED), Writer(SEED)
    wordings = parted(bank("rewrite")["pairs"], rng, share=0.25)
    items = [item for category in writer.reviews.values() for item in category["items"]]

    def write(part, i):
        line = writer.choose(wordings[part == "test_unseen"])
        plain, polite = line.split("==>")
        slots = writer.fix_slots(line, item=writer.choose(items))
        return dict(plain=writer.sentence(plain.strip(), **slots), polite=writer.sentence(polite.strip(), **slots))

    return collect(write, SIZES["rewrite"], rng)


def chat():
    """Messages to the assistant of an invented library, of one or two turns."""
    rng, writer = random.Random(SEED), Writer(SEED)
    lines = bank("chat")["exchanges"] * 2 + bank("chat")["followups"]

    def write(part, i):
        line = writer.choose(lines)
        slots = writer.fix_slots(line, item=writer.choose(writer.common["item"]))
        said = [writer.sentence(text.strip(), **slots) for text in line.split("==>")]
        roles = ["user", "assistant"] * (len(said) // 2)
        turns = [dict(role=role, content=text) for role, text in zip(roles, said, strict=True)]
        return dict(messages=[dict(role="system", content=SYSTEM), *turns])

    return collect(write, SIZES["chat"], rng)
