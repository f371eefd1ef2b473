"""What the predictions are worth: scores, simple baselines on the same rows, and what looks wrong with them."""

from collections import Counter, defaultdict

import numpy as np
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

import report
import verdict

NOTHING, LIST = "no entity", "word list"  # the baseline that reads nothing, and the one that reads
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
    counts = defaultdict(Counter)
    for row in rows["train"]:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            counts[word][tag] += 1
    usual = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    sentences = {part: rows[part]["tokens"][:] for part in ("validation", "test")}
    return {
        NOTHING: {part: [["O"] * len(words) for words in given] for part, given in sentences.items()},
        LIST: {
            part: [[usual.get(word, "O") for word in words] for words in given] for part, given in sentences.items()
        },
    }


# ---- What looks wrong -----------------------------------------------------------------------------------------------


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
    else:
        harder = verdict.of_the_parts(compared)
        found += harder + verdict.of_the_baselines(
            config, compared, results["metric"], () if harder else {NOTHING, LIST}
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
