"""Writes reviews, support messages, news, stories, dialogues and facts from the banks.

One `Writer` serves both sides: the unlabelled corpus for pre-training uses every word of the banks, the labelled data
sets hold some words out of its lists (`labelled.py`), so that "a word no label ever showed" is true by construction.
"""

import re

from grammar import BANKS, Grammar, read_bank, read_banks

SENTIMENTS = ("negative", "neutral", "positive")
ADJECTIVES = {"negative": "neg", "neutral": "neu", "positive": "pos"}
OPPOSITE = {"negative": "positive", "positive": "negative"}
UNCOUNTED = {"drink", "foodstuff", "material", "kind of weather"}  # "milk", not "a milk"
STARS = {"negative": (1, 2), "neutral": (3,), "positive": (4, 5)}


def lower_first(sentence):
    """The sentence as it reads after "However, "."""
    return sentence if re.match(r"I\b", sentence) else sentence[0].lower() + sentence[1:]


class Writer(Grammar):
    def __init__(self, seed=0, lists=None):
        super().__init__(seed, lists)
        self.reviews = read_banks("reviews")
        self.support = read_banks("support")
        self.common = self.support.pop("common")
        self.frames = read_bank(BANKS / "frames.txt")
        self.news = read_bank(BANKS / "entities" / "news.txt")["sentences"]
        self.no_names = read_bank(BANKS / "entities" / "news.txt")["none"]
        self.names = read_bank(BANKS / "entities" / "names.txt")
        self.world = read_banks("world")
        self.reading = read_banks("reading")
        self.things = [line.split("|") for line in self.world["things"]["things"] if line.count("|") == 4]
        self.lists = {
            **self.lists,
            "thing": [thing for thing, *_ in self.things],
            "spot": sorted({place for *_, place in self.things}),
        }

    # --- reviews -----------------------------------------------------------------------------------------------------
    def opinion(self, sentiment, bank, item, only_lists=False):
        """One sentence of the given sentiment; `only_lists` carries it by a listed adjective alone."""
        slots = dict(item=item, aspect=bank["aspects"], adj=f"<{ADJECTIVES[sentiment]}>")
        kinds = [sentiment] * 10 + ["opinion"] * 5 + [f"opinion_{sentiment}"] * 3 + ["negation"] * 2
        kind = "opinion" if only_lists else self.choose(kinds)
        if kind == "negation":
            kind = sentiment if sentiment == "neutral" else f"negation_{sentiment}"
        templates = bank[kind] if kind in bank else self.frames[kind]
        end = "!" if sentiment != "neutral" and self.chance(0.12) else "."
        return self.sentence(self.choose(templates), end, **slots)

    def join(self, connective, sentence):
        """`However, the lid ...` from a connective and a sentence of its own."""
        return self.sentence(self.choose(self.frames[connective]), "").rstrip(" ,") + ", " + lower_first(sentence)

    def review(self, sentiment=None, category=None, only_lists=False):
        """A review as `dict(text, label, category, title, stars)`."""
        sentiment = sentiment or self.choose(SENTIMENTS)
        category = category or self.choose(list(self.reviews))
        bank, item = self.reviews[category], self.choose(self.reviews[category]["items"])
        mixed = sentiment == "neutral" and not only_lists and self.chance(0.25)
        concession = sentiment != "neutral" and not only_lists and self.chance(0.1)
        sentences = []
        if mixed:
            sides = self.random.sample(["positive", "negative"], 2)
            sentences.append(self.opinion(sides[0], bank, item))
            sentences.append(self.join("contrast", self.opinion(sides[1], bank, item)))
        else:
            if concession:
                sentences.append(self.opinion(OPPOSITE[sentiment], bank, item))
            for _ in range(1 if only_lists else self.choose([1, 1, 2, 2, 3])):
                sentence = self.opinion(sentiment, bank, item, only_lists)
                if len(sentences) == 1 and concession:
                    sentence = self.join("contrast", sentence)
                elif sentences and self.chance(0.15):
                    sentence = self.join("addition", sentence)
                sentences.append(sentence)
        if self.chance(0.5):
            sentences.insert(0, self.sentence(self.choose(bank["setting"]), item=item, aspect=bank["aspects"]))
        if not only_lists and (concession or self.chance(0.25)):
            sentences.append(self.sentence(self.choose(self.frames[f"verdict_{sentiment}"]), item=item))
        title = self.sentence(self.choose(bank[f"title_{sentiment}"]), "", item=item, aspect=bank["aspects"])
        return dict(text=" ".join(sentences), label=sentiment, category=category, title=title.rstrip("."),
                    stars=self.choose(STARS[sentiment]))  # fmt: skip

    # --- customer support --------------------------------------------------------------------------------------------
    def message(self, intent=None, only_cues=False):
        """A customer's message as `dict(text, intent)`; `only_cues` carries the intent by a listed cue alone."""
        intent = intent or self.choose(list(self.support))
        bank, slots = self.support[intent], dict(item=self.common["item"])
        if only_cues or self.chance(0.35):
            text = self.sentence(self.choose(bank["frames"]), cue=bank["cues"], **slots)
        else:
            text = self.sentence(self.choose(bank["messages"]), **slots)
        if self.chance(0.3):
            text = self.sentence(self.choose(self.common["greetings"]), "").rstrip(" ,") + ", " + lower_first(text)
        if self.chance(0.25):
            text += " " + self.sentence(self.choose(self.common["closings"]))
        return dict(text=text, intent=intent)

    # --- sentences with names ----------------------------------------------------------------------------------------
    def name(self, kind):
        if kind != "PER":
            return self.choose(self.names[kind] + self.lists[{"LOC": "town", "ORG": "company"}[kind]])
        first, last = self.slot("first"), self.slot("last")
        return self.choose([f"{first} {last}", f"{first} {last}", first, last, f"{first[0]}. {last}"])

    def tagged(self):
        """A sentence with names as `dict(tokens, tags)`; BIO tags of PER, LOC and ORG."""
        template = self.choose(self.news) if self.chance(0.88) else self.choose(self.no_names)
        placed = []

        def place(match):
            placed.append((match[1], self.name(match[1])))
            return f"NAME{len(placed) - 1}Q"

        text = re.sub(r"<(PER|LOC|ORG)>", place, template)
        if placed and self.chance(0.1) and text.startswith("NAME"):
            text = self.choose(self.names["PER_title"]) + " " + text if placed[0][0] == "PER" else text
        tokens, tags = [], []
        for token in re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", self.sentence(text)):
            if held := re.fullmatch(r"NAME(\d+)Q", token):
                kind, name = placed[int(held[1])]
                words = re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", name)
                tokens += words
                tags += [f"B-{kind}"] + [f"I-{kind}"] * (len(words) - 1)
            else:
                tokens.append(token)
                tags.append("O")
        return dict(tokens=tokens, tags=tags)

    def news_item(self):
        """One to three sentences with names, as running text."""
        text = " ".join(" ".join(self.tagged()["tokens"]) for _ in range(self.choose([1, 2, 3])))
        return re.sub(r" ([.,;:!?)])", r"\1", text).replace("( ", "(")

    # --- the world ---------------------------------------------------------------------------------------------------
    def thing_facts(self):
        """Three to five sentences about one thing."""
        thing, category, use, adjectives, place = self.choose(self.things)
        adjectives = "|".join(adjective.strip() for adjective in adjectives.split(","))
        a = "" if category in UNCOUNTED else "a "
        forms = [
            f"{{{a}{thing} is|the {thing} is}} a {{kind of |}}{category}".replace("kind of kind", "kind"),
            f"{{{a}{thing} can be|the {thing} {{is|was|looks|seems}}}} {{{adjectives}}}",
            f"{{you find|people look for|we saw|there is}} {a}{thing} in the {place}",
            f"what {{is {a}{thing} for|does one do with {a}{thing}|about the {thing}}}? {use}",
            f"{{they|we|people}} {{needed|used|bought|brought}} {a}{thing} to {use}",
            f"{a}{thing} can {use}",
            f"in the {place} <first> {{noticed|drew|pointed at|asked about}} a {{{adjectives}}} {thing}",
            f"of all the things in the {place}, <first> {{likes|knows|wants|prefers}} the {thing}",
        ]
        return " ".join(self.sentence(form) for form in self.random.sample(forms, self.choose([3, 4, 5])))

    def everyday(self):
        """Two to four sentences of everyday life."""
        bank = self.world["everyday"]
        kinds = ["sentences", "sentences", "causes", "feelings"]
        return " ".join(self.sentence(self.choose(bank[self.choose(kinds)])) for _ in range(self.choose([2, 3, 4])))

    def story(self):
        """A tale of four to six sentences that ends well or badly."""
        hero, friend = self.random.sample(self.lists["first"], 2)
        mood, bank = self.choose(["good", "bad"]), self.world["stories"]
        parts = ["openings"] + ["events"] * self.choose([2, 3]) + [f"turns_{mood}", f"endings_{mood}"]
        slots = dict(hero=hero, friend=friend, thing=self.slot("thing"), spot=self.slot("spot"))
        return " ".join(self.sentence(self.choose(bank[part]), **slots) for part in parts)

    def exchange(self, section):
        """One question and its answer, with the shared slots filled alike."""
        question, answer = self.choose(
            [line for line in self.world["dialogues"][section] if line.count("==>") == 1]
        ).split("==>")
        slots = self.fix_slots(question + answer)
        return self.sentence(question, **slots), self.sentence(answer, **slots)

    def fix_slots(self, template, **given):
        """One filler for each slot of a template, so that several sentences agree."""
        return {**{name: self.slot(name) for name in re.findall(r"<(\w+)>", template) if name not in given}, **given}

    def facts(self, bank=None):
        """A passage about one invented subject, with its questions, as `(passage, [(question, answer), ...])`."""
        bank = bank or self.world["facts"]
        kind = self.choose(["person", "person", "town", "organisation", "object"] + ["event"] * ("event" in bank))
        subject = dict(
            PERSON=self.slot("full"), TOWN=self.slot("town"), ORG=self.slot("company"), thing=self.slot("thing")
        )
        lines = [line for line in bank[kind] if line.count("==>") == 2]
        sentences, questions = [], []
        for line in self.random.sample(lines, self.choose([2, 3, 4])):
            statement, question, answer = line.split("==>")
            slots = self.fix_slots(
                line, **(subject if kind == "object" else {k: v for k, v in subject.items() if k != "thing"})
            )
            sentences.append(self.sentence(statement, **slots))
            questions.append((self.sentence(question, "?", **slots), self.fill(answer, **slots).rstrip(".")))
        return " ".join(sentences), questions
