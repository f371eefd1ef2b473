"""What the predictions are worth: scores, simple baselines on the same rows, and what looks wrong with them."""

import random
from collections import Counter, defaultdict

import numpy as np
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

import report
import verdict

NOTHING, LIST = "no entity", "word list"  # the baseline that reads nothing, and the one that reads
MOVED = "this model's tags in another order"
METRICS = {"precision": precision_score, "recall": recall_score, "f1": f1_score}


# ---- Scores ---------------------------------------------------------------------------------------------------------


def main_metric(config):
    """The score that the run is judged by."""
    return "f1"


def scores(predictions, references):
    """Of whole entities: one counts as found when its kind, beginning and end are right."""
    return {name: float(score(references, predictions, zero_division=0)) for name, score in METRICS.items()}


def entities(tags):
    return set(get_entities(list(tags)))


def statistics(predictions, references):
    """What F1 is made of, a line a row: twice the entities that are right, and the number of both sides."""
    pairs = [(entities(said), entities(true)) for said, true in zip(predictions, references, strict=True)]
    return np.array([(2 * len(said & true), len(said) + len(true)) for said, true in pairs], float), verdict.ratio


# ---- Baselines ------------------------------------------------------------------------------------------------------


def baselines(rows, config):
    """Tags of each baseline for the validation and the test rows: none, and each word's most frequent tag."""
    nothing = {part: [["O"] * len(words) for words in rows[part]["tokens"]] for part in ("validation", "test")}
    return {NOTHING: nothing, LIST: word_list(rows)}


def word_list(rows, away=0):
    """The tag that each word of the validation and the test rows has most often in the rows to train on.

    With `away` of -1 or 1 it is not the word itself that is looked up, but the one before or after it.
    """

    def read(words):
        return [words[i + away] if 0 <= i + away < len(words) else "" for i in range(len(words))]

    counts = defaultdict(Counter)
    for row in rows["train"]:
        for word, tag in zip(read(row["tokens"]), row["tags"], strict=True):
            counts[word][tag] += 1
    usual = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    parts = ("validation", "test")
    return {part: [[usual.get(word, "O") for word in read(words)] for words in rows[part]["tokens"]] for part in parts}


# ---- What looks wrong -----------------------------------------------------------------------------------------------


def against_moved(results):
    """The model against its own tags in a random order within each row: who cannot beat that knows no word."""
    draw, compared = random.Random(0), {}
    for part in ("validation", "test"):
        pairs = zip(results["predictions"][part], results["references"][part], strict=True)
        said, true = zip(*[pair for pair in pairs if len(set(pair[0])) > 1] or [(["O"], ["O"])], strict=True)
        moved = [draw.sample(list(tags), len(tags)) for tags in said]
        made = {"this model": statistics(said, true)[0], MOVED: statistics(moved, true)[0]}
        compared[part] = verdict.compare(made, verdict.ratio)
    return compared


def of_the_neighbours(results, rows):
    """When a list of the words before, or after, knows the tags better than one of the words themselves."""
    own = word_list(rows)
    for away, side in ((-1, "before"), (1, "after")):
        leads = []
        for part, tags in word_list(rows, away).items():
            lists = {"neighbours": tags, LIST: own[part]}
            made = {name: statistics(one, results["references"][part])[0] for name, one in lists.items()}
            leads.append(verdict.compare(made, verdict.ratio)[LIST])
        if all(one["lead"] > 0.1 and one["lead_low"] > 0 for one in leads):
            return [
                f"The tags fit the word {side} theirs better than their own: a list of words scores "
                f"{verdict.points(leads[0]['lead'], signed=False)} points more on the validation rows when it looks "
                "there. Look whether the tags of data.train are moved by a word."
            ]
    return []


def warnings(results, rows, config):
    """Sentences on what looks wrong, each with the setting to change; none when nothing does."""
    compared, found = results["baselines"], []
    kinds = {part: {tag[2:] for tags in rows[part]["tags"] for tag in tags if tag != "O"} for part in rows}
    for part in ("validation", "test"):
        if new := kinds[part] - kinds["train"]:
            names = ", ".join(sorted(new))
            found.append(f"data.{part} has kinds that no row to train on has, so none is found: {names}.")
        if not kinds[part]:
            found.append(f"data.{part} has no entity, so F1 says nothing there: give it more rows.")
    read = max(one[LIST]["score"] for one in compared.values())
    if not (kinds["validation"] or kinds["test"]):
        pass  # said above
    elif max(one["this model"]["score"] for one in compared.values()) == 0:
        tags = (
            ""
            if read > 0.05
            else ". A word list finds none either, so look whether data.train has each word's own tags"
        )
        do = verdict.more_or_less(config, results["history"], len(config["data"]["labels"]))
        found.append(f"It finds no entity that is right, so F1 is 0: {do}{tags}.")
    elif verdict.unclear(compared, NOTHING) and read <= 0.05:
        found.append(verdict.unrelated("tags"))
    elif verdict.unclear(against_moved(results), MOVED):
        found.append(
            "The tags look unrelated to the words, as if shuffled within their rows or moved to the next word: this "
            "model's own tags in a random order score as well. Compare some rows of data.train with where they came "
            "from; no other setting helps."
        )
    else:
        harder = verdict.of_the_parts(compared)
        found += (
            of_the_neighbours(results, rows)
            + harder
            + verdict.of_the_baselines(config, compared, results["metric"], () if harder else {NOTHING, LIST})
        )
    return found


# ---- The report's own sections --------------------------------------------------------------------------------------


def sections(results, rows, config):
    """Titles with HTML on the validation rows: the entities by kind, and the surest mistakes."""
    predicted, references = results["predictions"]["validation"], results["references"]["validation"]
    sure, words = results["probabilities"]["validation"], rows["validation"]["tokens"][:]
    right, said, true, mistakes = Counter(), Counter(), Counter(), []
    for i, (found, wanted) in enumerate(zip(map(entities, predicted), map(entities, references), strict=True)):
        said.update(kind for kind, _, _ in found)
        true.update(kind for kind, _, _ in wanted)
        right.update(kind for kind, _, _ in found & wanted)
        for kind, start, end in found - wanted:
            here = ", ".join(sorted({k for k, a, b in wanted if a <= end and start <= b})) or "no entity"
            mistakes.append((np.mean(sure[i][start : end + 1]), i, start, end, kind, here))
        for kind, start, end in wanted - found:
            if not any(a <= end and start <= b for _, a, b in found):
                mistakes.append((np.mean(sure[i][start : end + 1]), i, start, end, "no entity", kind))
    lines = [
        (
            kind,
            right[kind] / max(said[kind], 1),
            right[kind] / max(true[kind], 1),
            2 * right[kind] / max(said[kind] + true[kind], 1),
            true[kind],
        )
        for kind in sorted(said | true)
    ]
    mistakes.sort(reverse=True)
    shown = [
        (" ".join(words[i][start : end + 1]), " ".join(words[i][max(0, start - 5) : end + 6]), true_, said_, float(p))
        for p, i, start, end, said_, true_ in mistakes[:15]
    ]
    told = '<p class="soft">Look here first for tags that are wrong in the data.</p>'
    header = ("words", "where", "tagged", "predicted", "probability")
    return [
        (
            "Entities by kind, on the validation rows",
            report.table(("kind", "precision", "recall", "F1", "entities"), lines),
        ),
        ("The surest mistakes", told + report.table(header, shown)),
    ]
