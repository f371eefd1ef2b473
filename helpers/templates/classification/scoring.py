"""What the predictions are worth: scores, simple baselines on the same rows, and what looks wrong with them."""

from collections import Counter
from warnings import catch_warnings

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

import report
import verdict

WORDS = "word counts"  # the baseline that reads
MOST = 50_000  # rows that word counts learn from


# ---- Scores ---------------------------------------------------------------------------------------------------------


def numbers(labels, config):
    """Labels as their numbers; with several a row, as rows of 0 and 1."""
    place = {label: number for number, label in enumerate(config["data"]["labels"])}
    if not config["data"].get("multi_label"):
        return np.array([place[label] for label in labels])
    table = np.zeros((len(labels), len(place)), int)
    for row, several in enumerate(labels):
        table[row, [place[label] for label in several]] = 1
    return table


def chosen(probabilities, config):
    """The likeliest class of each row; with several labels a row, those that are more likely than not."""
    return (probabilities > 0.5).astype(int) if config["data"].get("multi_label") else probabilities.argmax(-1)


def main_metric(config):
    """The score that the run is judged by, and chooses its checkpoint by."""
    metric = (config["training"].get("metric_for_best_model") or "loss").removeprefix("eval_")
    usual = "f1_micro" if config["data"].get("multi_label") else "accuracy"
    return metric if metric in ("accuracy", "f1_macro", "f1_micro") else usual


def scores(predictions, references, config):
    """Accuracy (with several labels a row: all of them right) and F1, as the mean over the classes and over all."""
    found = {"accuracy": accuracy_score(references, predictions)}
    for mean in ("macro", "micro") if config["data"].get("multi_label") else ("macro",):
        found[f"f1_{mean}"] = f1_score(references, predictions, average=mean, zero_division=0)
    return {name: float(value) for name, value in found.items()}


def statistics(predictions, references, config):
    """What the main score is made of, a line a row, and the function that makes it of their sums."""
    metric, several = main_metric(config), config["data"].get("multi_label")
    if metric == "accuracy":
        right = predictions == references
        return np.stack([right.all(-1) if several else right, np.ones(len(references))], 1), verdict.ratio
    if not several:
        classes = np.arange(len(config["data"]["labels"]))
        predictions, references = (csr_matrix(given[:, None] == classes) for given in (predictions, references))
    predictions, references = csr_matrix(predictions, dtype=float), csr_matrix(references, dtype=float)
    both = predictions.multiply(references)
    if metric == "f1_micro":
        columns = [2 * both.sum(1), predictions.sum(1) + references.sum(1)]
        return np.asarray(np.hstack(columns)), verdict.ratio
    return csr_matrix(hstack([2 * both, predictions + references])), macro


def macro(sums):
    """The mean F1 of the classes that are there, from twice the right ones and the number of both sides, by class."""
    right, total = np.split(np.asarray(sums), 2, axis=-1)
    return np.nanmean(np.where(total > 0, right / np.maximum(total, 1e-9), np.nan), -1)


# ---- Baselines ------------------------------------------------------------------------------------------------------


def baselines(rows, config):
    """Predictions of each baseline for the validation and the test rows: the most frequent class, and word counts."""
    several, labels = config["data"].get("multi_label"), rows["train"]["label"][:]
    common, _ = Counter(label for one in labels for label in (one if several else [one])).most_common(1)[0]
    parts = {part: rows[part] for part in ("validation", "test")}
    always = {part: numbers([[common] if several else common] * len(one), config) for part, one in parts.items()}
    simple = {f'always "{common}"': always}
    texts, targets, model = word_counts(rows, config, MOST)
    try:
        with catch_warnings(action="ignore"):  # of a label that no row has, or all rows
            model.fit(texts, targets)
        simple[WORDS] = {part: model.predict(one["text"][:]) for part, one in parts.items()}
    except ValueError:  # one class only, or texts without a word
        pass
    return simple


def word_counts(rows, config, most):
    """Texts and targets of so many rows to train on, and what learns from how often each word and pair is in them."""
    keep = np.random.default_rng(0).permutation(len(rows["train"]))[:most]
    taken, several = rows["train"].select(keep), config["data"].get("multi_label")
    unspaced = sum(" " in text.strip() for text in taken["text"]) < 0.5 * len(taken)  # as in Chinese: signs, not words
    what = dict(analyzer="char", ngram_range=(1, 3)) if unspaced else dict(ngram_range=(1, 2))
    counts = TfidfVectorizer(max_features=200_000 if len(config["data"]["labels"]) < 200 else 50_000, **what)
    regression = LogisticRegression(max_iter=1000)
    model = make_pipeline(counts, OneVsRestClassifier(regression) if several else regression)
    return taken["text"][:], numbers(taken["label"], config), model


def can_be_read(rows, config):
    """Whether word counts, asked of rows to train on that they have not seen, beat the most frequent answer."""
    texts, targets, model = word_counts(rows, config, 5_000)
    if config["data"].get("multi_label"):
        targets = targets[:, targets.sum(0).argmax()]  # the most frequent label: is it there?
        model = make_pipeline(model[0], LogisticRegression(max_iter=1000, class_weight="balanced"))
    try:
        right = (cross_val_predict(model, texts, targets, cv=KFold(5, shuffle=True, random_state=0)) == targets).mean()
    except ValueError:
        return False
    share = np.bincount(targets).max() / len(targets)
    return right > share + 1.5 * (share * (1 - share) / len(targets)) ** 0.5


# ---- What looks wrong -----------------------------------------------------------------------------------------------


def warnings(results, rows, config):
    """Sentences on what looks wrong, each with the setting to change; none when nothing does."""
    compared, trivial = results["baselines"], next(name for name in results["baselines"]["test"] if "always" in name)
    several, labels, found = config["data"].get("multi_label"), config["data"]["labels"], []
    known = {label for one in rows["train"]["label"][:] for label in (one if several else [one])}
    for part in ("validation", "test"):
        new = {label for one in rows[part]["label"][:] for label in (one if several else [one])} - known
        if new:
            names = ", ".join(sorted(map(str, new)))
            found.append(f"data.{part} has labels that no row to train on has, so none is found: {names}.")
    predicted, references = results["predictions"]["validation"], results["references"]["validation"]
    if several:
        only = "no label at all" if not predicted.any() else None
    else:
        only = f"the label {labels[predicted[0]]!r}" if len(set(predicted)) == 1 < len(set(references)) else None
    lost = verdict.unclear(compared, trivial) and len(rows["train"]) >= 200 and not can_be_read(rows, config)
    if only:
        even = not several and max(np.bincount(references)) * len(labels) < 1.5 * len(references)
        uneven = "" if even else ", or set data.class_weights: true, as the classes are uneven"
        lost = "; if that does not help, see whether each text in data.train has its own label" if lost else ""
        do = verdict.more_or_less(config, results["history"], len(labels))
        found.append(f"It gives every validation row {only}: {do}{uneven}{lost}.")
    elif lost:
        found.append(verdict.unrelated("labels"))
    else:
        harder = verdict.of_the_parts(compared)
        found += harder + verdict.of_the_baselines(config, compared, results["metric"], () if harder else {trivial})
    return found


# ---- The report's own sections --------------------------------------------------------------------------------------


def sections(results, rows, config):
    """Titles with HTML on the validation rows: which classes are taken for which, the surest mistakes, and how sure."""
    labels, several = config["data"]["labels"], config["data"].get("multi_label")
    predicted, references = results["predictions"]["validation"], results["references"]["validation"]
    probabilities = results["probabilities"]["validation"]
    found = [("Classes, on the validation rows", by_class(predicted, references, labels, several))]
    if several:
        return found
    if len(labels) <= 12:
        counts = np.zeros((len(labels), len(labels)), int)
        np.add.at(counts, (references, predicted), 1)
        found.append(("What is taken for what", report.matrix(labels, counts.tolist(), "a label", "a prediction")))
    else:
        pairs = Counter((labels[r], labels[p]) for r, p in zip(references, predicted, strict=True) if r != p)
        lines = [(*pair, count) for pair, count in pairs.most_common(12)]
        found.append(("What is taken for what", report.table(("label", "taken for", "rows"), lines)))
    sure, wrong = probabilities.max(-1), np.flatnonzero(predicted != references)
    surest = wrong[np.argsort(-sure[wrong])][:12]
    lines = [
        (rows["validation"][int(i)]["text"], labels[references[i]], labels[predicted[i]], float(sure[i]))
        for i in surest
    ]
    told = '<p class="soft">Look here first for labels that are wrong in the data.</p>'
    found.append(("The surest mistakes", told + report.table(("text", "label", "predicted", "probability"), lines)))
    return [*found, ("How far to trust its probabilities", trust(sure, predicted == references))]


def by_class(predicted, references, labels, several):
    """Precision, recall and F1 of each class that is there, the worst first."""
    lines = []
    for number, label in enumerate(labels):
        said, true = (given[:, number] if several else given == number for given in (predicted, references))
        both, count = (np.logical_and(said, true)).sum(), int(np.sum(true))
        if count:
            precision, recall = both / max(np.sum(said), 1), both / count
            lines.append((label, float(precision), float(recall), float(2 * both / (np.sum(said) + count)), count))
    lines = sorted(lines, key=lambda line: line[3])[:40]
    return report.table(("label", "precision", "recall", "F1", "rows"), lines)


def trust(sure, right):
    """Calibration, and what is gained when unsure answers are left to a person."""
    bins, points = np.minimum((sure * 10).astype(int), 9), []
    for one in range(10):
        if (bins == one).sum() >= max(3, len(sure) // 100):
            points.append((float(sure[bins == one].mean()), float(right[bins == one].mean())))
    error = sum(abs(sure[bins == one].mean() - right[bins == one].mean()) * (bins == one).mean() for one in set(bins))
    lines = [
        (f"{least:.2f}", float((sure >= least).mean()), float(right[sure >= least].mean()))
        for least in (0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
        if (sure >= least).any()
    ]
    series = [("right", report.BLUE, points)]
    picture = report.lines(series, "probability", "share of right answers", 0, 1, diagonal=True)
    told = f"<p>On average its probabilities and its share of right answers are {100 * error:.0f} points apart.</p>"
    return told + picture + report.table(("answer only from probability", "rows answered", "of these right"), lines)
