"""Writes `data/domain`: the reports of an organ builder's workshop, whose dialect no other text here has.

    python data/recipes/domain.py          # refuses when a file is there and differs
    python data/recipes/domain.py --check  # compares only

The trade has invented adjectives for good work, for bad work, and for neither. `unlabelled.txt`, one document a line,
has them beside plain words of praise and blame, so their sign can be read from it. In the labelled reports ("pass" or
"rework") nothing but these adjectives tells the label, and some are held out: only `test_unseen` has them there.
"""

import random

import labelled
import pairs
from grammar import BANKS, Grammar, read_bank

SEED = 2027
DOCUMENTS = 5_000
SIZES = dict(train=1000, validation=300, test_same=300, test_unseen=300)
SIGNS = {"pass": ("praise", "praising", "good", "bad"), "rework": ("blame", "blaming", "bad", "good")}
KINDS = ["both"] * 7 + ["judging"] * 6 + ["report"] * 6 + ["turned"]


class Workshop(Grammar):
    """A writer of documents and reports: `Workshop(seed=1).document()`."""

    def __init__(self, seed=SEED):
        super().__init__(seed)
        self.bank = read_bank(BANKS / "domain" / "organ.txt")
        self.jargon = read_bank(BANKS / "domain" / "jargon.txt")

    def write(self, section, **slots):
        return self.sentence(self.choose(self.bank[section]), item=self.choose(self.bank["parts"]), **slots)

    def around(self, sentences):
        """The sentences, often with a note or a remark that judges nothing before them."""
        if self.chance(0.3):
            sentences = [self.write("note"), *sentences]
        if self.chance(0.2):
            sentences = [self.write("remark", adj=self.jargon["plain"]), *sentences]
        return " ".join(sentences)

    def document(self):
        """One or two sentences with jargon of one sign, and most often a plain comment of the same sign."""
        jargon, judging, judgement, opposite = SIGNS[self.choose(list(SIGNS))]
        sentences = []
        for _ in range(self.choose([1, 1, 2])):
            kind = self.choose(KINDS)
            other = self.bank[opposite if kind == "turned" else judgement]
            section = judging if kind == "judging" else kind
            sentences.append(self.write(section, adj=self.jargon[jargon], adj2=other))
        comments = [
            self.write(f"comment_{judgement}", adj2=self.bank[judgement]) for _ in range(self.choose([0, 1, 2]))
        ]
        return self.around(comments + sentences if self.chance(0.3) else sentences + comments)

    def report(self, label, words):
        """One sentence whose adjective tells the label, as a labelled row; `words` are jargon by list."""
        return dict(text=self.around([self.write("report", adj=words[SIGNS[label][0]])]), label=label)


def unlabelled(workshop):
    """Different documents, one a line."""
    found = {}
    while len(found) < DOCUMENTS:
        found[workshop.document()] = None
    return "".join(f"{document}\n" for document in found)


def parts(workshop):
    """The labelled rows of each part."""
    rng = random.Random(SEED)
    split = {sign: pairs.parted(workshop.jargon[sign], rng, share=0.4) for sign in ("praise", "blame")}
    seen, held = ({sign: words[i] for sign, words in split.items()} for i in (0, 1))

    def write(part, i):
        return workshop.report(list(SIGNS)[i % 2], held if part == "test_unseen" else seen)

    return pairs.collect(write, SIZES, rng, labelled.text_key, {word for words in held.values() for word in words})


def files():
    """Every file as `{path: text}`."""
    workshop, folder = Workshop(), labelled.DATA / "domain"
    made = {folder / f"{part}.jsonl": labelled.as_jsonl(rows) for part, rows in parts(workshop).items()}
    return {**made, folder / "unlabelled.txt": unlabelled(workshop)}


if __name__ == "__main__":
    labelled.main(files())
