"""Hand-written banks of sentences, and the small grammar that speaks them.

A bank is a text file under `banks/`: `# name` opens a section, each further line is one entry. In a template

* `{a|b|c}` is one of the alternatives, at random; alternatives may be empty and may be nested;
* `<name>` is one entry of a word list: a section of `lists.txt` or `polarity.txt`, or whatever the caller passes.

Randomness comes from one `random.Random`, so that the same seed writes the same text on every machine.
"""

import random
import re
from pathlib import Path

BANKS = Path(__file__).parent / "banks"
INNERMOST = re.compile(r"\{([^{}]*)\}")
SLOT = re.compile(r"<(\w+)>")
ARTICLE = re.compile(r"\b(a) (?=(?!one\b|once|uni(?!m)|us[eua]|eu)[aeiou]|hour|honest)", re.IGNORECASE)


def read_bank(path):
    """Read one bank as `{section: [entry, ...]}`.

    >>> bank = read_bank(BANKS / "lists.txt")
    >>> len(bank["month"])
    12
    """
    sections, entries = {}, None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            entries = sections.setdefault(line[2:].strip(), [])
        elif line.strip():
            entries.append(line.strip())
    return sections


def read_banks(folder):
    """Read every bank of a folder as `{file name without ending: sections}`, in the order of their names."""
    return {path.stem: read_bank(path) for path in sorted((BANKS / folder).glob("*.txt"))}


class Grammar:
    """Fills templates from the shared word lists.

    >>> grammar = Grammar(seed=0)
    >>> grammar.sentence("the {lid|cover} is a odd thing")
    'The cover is an odd thing.'
    """

    def __init__(self, seed=0, lists=None):
        self.random = random.Random(seed)
        self.lists = lists or {**read_bank(BANKS / "lists.txt"), **read_bank(BANKS / "polarity.txt")}

    def choose(self, entries):
        return entries[int(self.random.random() * len(entries))]

    def chance(self, probability):
        return self.random.random() < probability

    def slot(self, name):
        """One filler for `<name>`."""
        if name == "full":
            return f"{self.choose(self.lists['first'])} {self.choose(self.lists['last'])}"
        if name == "surname":
            return self.choose(self.lists["last"])
        if name == "number":
            return str(self.random.randint(2, 99))
        if name == "year":
            return str(self.random.randint(1850, 2025))
        return self.choose(self.lists[name])

    def fill(self, template, **slots):
        """Expand alternatives and slots; `slots` are word lists or single words that come before the shared lists."""
        while match := INNERMOST.search(template):
            template = template[: match.start()] + self.choose(match[1].split("|")) + template[match.end() :]
        for _ in range(3):  # a filler may hold slots of its own
            if "<" not in template:
                break
            template = SLOT.sub(lambda match: self.fill_slot(match, slots), template)
            while match := INNERMOST.search(template):
                template = template[: match.start()] + self.choose(match[1].split("|")) + template[match.end() :]
        template = ARTICLE.sub(r"\1n ", template)
        return re.sub(r"\s+", " ", template).replace(" ,", ",").replace(" .", ".").strip()

    def fill_slot(self, match, slots):
        filler = slots.get(match[1])
        if filler is None:
            return self.slot(match[1])
        return filler if isinstance(filler, str) else self.choose(filler)

    def sentence(self, template, end=".", **slots):
        """A filled template with a capital letter and an end."""
        text = self.fill(template, **slots).rstrip(",;:")
        text = text[0].upper() + text[1:]
        return text if text[-1] in ".!?" else text + end
