"""Metrics that need no network, intervals around them, and `compute_metrics` for the Trainer.

    metrics.Accuracy(), metrics.Precision(), metrics.Recall(), metrics.F1(), metrics.EntityF1()

are `evaluate.Metric` classes: use `compute`, `add`, `add_batch` and `evaluate.combine` as with `evaluate.load`, which
fetches its scripts from the Hub and so fails without a network. They are made when first asked for, because
`import evaluate` takes seconds; everything else in this module works without it.

>>> from helpers import metrics
>>> metrics.F1(average="macro").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
{'f1_macro': 0.7333333333333334}

The functions go by name: "accuracy", "precision_macro", "recall_macro", "f1_macro", the same with "_weighted", and for
tags "entity_precision", "entity_recall", "entity_f1". As in scikit-learn, an average is over the classes that occur in
the references or in the predictions, and a score that would divide by zero is 0.
"""

import functools
from collections import Counter
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

KINDS = ("precision", "recall", "f1")
CLASS_METRICS = ("accuracy", *(f"{kind}_{average}" for average in ("macro", "weighted") for kind in KINDS))
ENTITY_METRICS = tuple(f"entity_{kind}" for kind in KINDS)
IGNORED = -100  # the label of a token that has none, in every library


class Interval(NamedTuple):
    """A value and the range that it may well lie in; prints as `0.82 [0.79, 0.85]`, or with the digits you ask for.

    >>> print(Interval(0.823, 0.79, 0.851))
    0.82 [0.79, 0.85]
    >>> f"{Interval(0.823, 0.79, 0.851):.1%}"
    '82.3% [79.0%, 85.1%]'
    """

    value: float
    low: float
    high: float

    def __format__(self, spec):
        value, low, high = (format(number, spec or ".2f") for number in self)
        return f"{value} [{low}, {high}]"

    def __str__(self):
        return format(self)


# ---- Scores and their intervals -----------------------------------------------------------------------


def score(metric, predictions, references):
    """The value of a metric, by its name; the same number as scikit-learn's or seqeval's.

    Takes class ids or class names; for the entity metrics one list of BIO tags for each sentence. `ValueError` when the
    lengths differ, when there is nothing to score, or when the metric is unknown.

    >>> score("accuracy", [0, 1, 1, 0], [0, 1, 0, 0])
    0.75
    >>> score("entity_f1", [["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]])
    0.0
    """
    evaluate_draws, counts = _counted(metric, predictions, references)
    return float(evaluate_draws(counts[None])[0])


def interval(metric, predictions, references, *, n=1000, confidence=0.95, seed=0):
    """A metric with its percentile bootstrap interval: how much it could change with other rows of the same kind.

    Draws as many rows (for entities: sentences) as there are, with replacement, `n` times. It says nothing of another
    training run: for that see `mean_interval`. It takes the rows as independent, is a little too narrow below some 50
    rows, and has no width at all when every row is right. `metric` is a name, or any function of (predictions,
    references) that returns a number: it is called n + 1 times, on lists when it was given lists, else on arrays.

    >>> interval("accuracy", [0, 1] * 100, [0, 1] * 80 + [1, 0] * 20)
    Interval(value=0.8, low=0.74, high=0.855)

    Taught in notebooks/01_classification.ipynb, "Round 3: how good is it?".
    """
    if not 0 < confidence < 1 or n < 1:
        raise ValueError(
            f"confidence={confidence}, n={n}: confidence lies between 0 and 1 (such as 0.95), n is 1 or more."
        )
    rng = np.random.default_rng(seed)
    if callable(metric):
        predictions, references = _plain(predictions), _plain(references)
        _check(predictions, references)
        rows = len(references)
        drawn = (rng.integers(rows, size=rows) for _ in range(n))
        scores = [metric(_take(predictions, index), _take(references, index)) for index in drawn]
        value = metric(predictions, references)
    else:
        # Rows with the same outcome are interchangeable: draw how often each outcome occurs, not row by row.
        evaluate_draws, counts = _counted(metric, predictions, references)
        draws = rng.multinomial(counts.sum(), counts / counts.sum(), size=n)
        scores, value = evaluate_draws(draws), evaluate_draws(counts[None])[0]
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def mean_interval(values, confidence=0.95):
    """The mean over a few seeds with its Student t interval.

    Assumes that the runs are independent and spread like a normal distribution. With 3 seeds the interval is wide (4.3
    standard errors to each side), and rightly so; it may reach beyond 0 or 1. It is about other seeds on the same test
    rows, not about other rows: for those see `interval`.

    >>> print(mean_interval([0.80, 0.82, 0.84]))
    0.82 [0.77, 0.87]

    Taught in notebooks/01_classification.ipynb, "Round 3: how good is it?".
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval over seeds needs two or more finite numbers; found {values.tolist()}.")
    half = t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(*(float(number) for number in (values.mean(), values.mean() - half, values.mean() + half)))


# ---- For the Trainer ----------------------------------------------------------------------------------


def for_trainer(*names):
    """A `compute_metrics` for sequence classification; accuracy and f1_macro unless you name others.

    Takes logits (also as the first of a tuple) or, after `keep_argmax` class ids. The names get no prefix here: the
    Trainer adds `eval_`.

    >>> from transformers import EvalPrediction
    >>> compute_metrics = for_trainer("accuracy")
    >>> compute_metrics(EvalPrediction(predictions=np.array([[2.0, 1.0], [0.5, 3.0]]), label_ids=np.array([0, 0])))
    {'accuracy': 0.5}

    Taught in notebooks/01_classification.ipynb, "What it has to beat".
    """
    names = names or ("accuracy", "f1_macro")
    for name in names:
        _known(name, CLASS_METRICS)

    def compute_metrics(evaluation):
        predictions, references = _class_ids(evaluation)
        return {name: score(name, predictions, references) for name in names}

    return compute_metrics


def for_tokens(names):
    """A `compute_metrics` for token classification: BIO tags from logits and label ids, then the results of `EntityF1`.

    `names` are the tags in the order of their ids, or the model's `id2label`. Tokens with label -100 (special tokens,
    continued words) do not count.

    >>> from transformers import EvalPrediction
    >>> compute_metrics = for_tokens(["O", "B-PER"])
    >>> compute_metrics(EvalPrediction(predictions=np.array([[0, 1, 0]]), label_ids=np.array([[-100, 1, -100]])))
    {'entity_precision': 1.0, 'entity_recall': 1.0, 'entity_f1': 1.0, 'f1_PER': 1.0}

    Taught in notebooks/01_classification.ipynb, "The same idea for each token".
    """

    def compute_metrics(evaluation):
        predictions, references = _class_ids(evaluation)
        kept = [
            (row[true != IGNORED], true[true != IGNORED]) for row, true in zip(predictions, references, strict=True)
        ]
        found, wanted = (
            [[_name(names, tag) for tag in sentence] for sentence in side] for side in zip(*kept, strict=True)
        )
        return _entity_scores(found, wanted)

    return compute_metrics


def keep_argmax(logits, labels):
    """For `preprocess_logits_for_metrics`: keeps the chosen class only, so that evaluation does not pile up logits.

    >>> keep_argmax(np.array([[2.0, 1.0], [0.5, 3.0]]), None)
    array([0, 1])
    """
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


# ---- Modules for `evaluate` ---------------------------------------------------------------------------


def __getattr__(name):  # Python calls this for a name that the module does not have yet
    if name not in ("Accuracy", "Precision", "Recall", "F1", "EntityF1"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(_metric_classes())
    return globals()[name]


@functools.cache
def _base_class():
    """What our metrics share: labels of either kind, checks with clear errors, no file left behind."""
    import evaluate
    from datasets import Features, Value

    class Metric(evaluate.Metric):
        kinds = (Value("string"), Value("int64"))  # names or ids; evaluate takes the first that fits

        def __init__(self, config_name=None, **kwargs):
            # What is added stays in memory; evaluate makes its cache folder all the same.
            kwargs = {"keep_in_memory": kwargs.get("num_process", 1) == 1, "cache_dir": _cache_folder().name} | kwargs
            super().__init__(config_name, **kwargs)

        def _info(self):
            text, options = type(self).__doc__, [Features(predictions=kind, references=kind) for kind in self.kinds]
            return evaluate.MetricInfo(description=text, citation="", inputs_description=text, features=options)

        def add(self, *, prediction=None, reference=None, **kwargs):
            """Adds one prediction and its reference."""
            one = {"predictions": prediction, "references": reference} | kwargs  # `combine` passes the plural names
            self.add_batch(**{name: [value] for name, value in one.items()})

        def add_batch(self, *, predictions=None, references=None, **kwargs):
            """Adds predictions and references of the same length."""
            predictions, references = _listed(predictions), _listed(references)
            _check(predictions, references)
            super().add_batch(predictions=predictions, references=references, **kwargs)

        def compute(self, *, predictions=None, references=None, **kwargs):
            """Scores these, or what was added before; then forgets it."""
            if predictions is None and references is None and self.writer is None:
                _check([], [])
            return super().compute(predictions=predictions, references=references, **kwargs)

    return Metric


@functools.cache
def _metric_classes():
    from datasets import List, Value

    Metric = _base_class()

    class Accuracy(Metric):
        """The share of rows that are right: {"accuracy"}."""

        def _compute(self, predictions, references):
            from sklearn.metrics import accuracy_score

            return {"accuracy": float(accuracy_score(references, predictions))}

    class Averaged(Metric):
        def __init__(self, average="macro", names=None, **kwargs):
            if average not in ("macro", "weighted", None):
                raise ValueError(
                    f'average={average!r} is not one of "macro", "weighted", None (each class on its own).'
                )
            self.average, self.names = average, names
            super().__init__(average or "per_class", **kwargs)

        def _compute(self, predictions, references):
            from sklearn.metrics import precision_recall_fscore_support

            kind = type(self).__name__.lower()
            classes = sorted({*predictions, *references}) if self.names is None else list(range(len(self.names)))
            known = None if self.average else classes
            scores = precision_recall_fscore_support(
                references, predictions, labels=known, average=self.average, zero_division=0
            )[KINDS.index(kind)]
            if self.average:
                return {f"{kind}_{self.average}": float(scores)}
            keys = classes if self.names is None else [_name(self.names, number) for number in classes]
            return {f"{kind}_{key}": float(value) for key, value in zip(keys, scores, strict=True)}

    class Precision(Averaged):
        """Of the rows given a class, the share that have it: {"precision_macro"}, or one for each class."""

    class Recall(Averaged):
        """Of the rows that have a class, the share given it: {"recall_macro"}, or one for each class."""

    class F1(Averaged):
        """The harmonic mean of precision and recall: {"f1_macro"}, or one for each class."""

    class EntityF1(Metric):
        """Whole entities, by type and place: {"entity_precision", "entity_recall", "entity_f1", "f1_PER", ...}."""

        kinds = (List(Value("string")),)

        def _compute(self, predictions, references):
            return _entity_scores(predictions, references)

    found = {kind.__name__: kind for kind in (Accuracy, Precision, Recall, F1, EntityF1)}
    for name, kind in found.items():
        kind.__qualname__ = name  # so that it pickles and prints as a class of this module
    return found


@functools.cache
def _cache_folder():
    import tempfile

    return tempfile.TemporaryDirectory(prefix="metrics-")


# ---- What the functions above share -------------------------------------------------------------------


def _counted(metric, predictions, references):
    """The outcomes that occur and how often, and a function from such counts, shape (draws, outcomes), to scores."""
    predictions, references = _plain(predictions), _plain(references)
    if _known(metric, CLASS_METRICS + ENTITY_METRICS) in ENTITY_METRICS:
        outcomes = Counter(_entity_counts(predictions, references))
        hits_found_wanted = np.array(list(outcomes))
        return lambda draws: _ratio(metric, *(draws @ hits_found_wanted).T), np.array(list(outcomes.values()))
    _check(predictions, references)
    if "list" in (_kind(predictions[0]), _kind(references[0])):
        raise ValueError(f'"{metric}" takes one class for each row. Pass logits.argmax(-1); for tags, "entity_f1".')
    predictions, references = np.asarray(predictions), np.asarray(references)
    classes, codes = np.unique(np.concatenate([predictions, references]), return_inverse=True)
    found, wanted = codes.reshape(2, -1)
    outcomes, counts = np.unique(found * len(classes) + wanted, return_counts=True)
    each = np.eye(len(classes))
    found, wanted = each[outcomes // len(classes)], each[outcomes % len(classes)]
    return lambda draws: _averaged(metric, draws @ (found * wanted), draws @ found, draws @ wanted), counts


def _averaged(metric, hits, found, wanted):
    """A class metric from counts of shape (draws, classes)."""
    if metric == "accuracy":
        return hits.sum(-1) / wanted.sum(-1)
    weights = wanted if metric.endswith("weighted") else found + wanted > 0
    return (_ratio(metric, hits, found, wanted) * weights).sum(-1) / weights.sum(-1)


def _ratio(metric, hits, found, wanted):
    """Precision, recall or F1; 0 where it would divide by zero."""
    kind = next(kind for kind in KINDS if kind in metric)
    above, below = {"precision": (hits, found), "recall": (hits, wanted), "f1": (2 * hits, found + wanted)}[kind]
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def _entity_counts(predictions, references):
    """For each sentence: entities that are right, entities predicted, entities there are."""
    from seqeval.metrics.sequence_labeling import get_entities

    _check_tags(predictions, references)
    spans = [[set(get_entities(list(tags))) for tags in side] for side in (predictions, references)]
    return [(len(found & wanted), len(found), len(wanted)) for found, wanted in zip(*spans, strict=True)]


def _entity_scores(predictions, references):
    from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

    _check_tags(predictions, references)
    types = sorted({kind for side in (predictions, references) for tags in side for kind, *_ in get_entities(tags)})
    if not types:  # seqeval fails when there is no entity at all
        return dict.fromkeys(ENTITY_METRICS, 0.0)
    overall = precision_recall_fscore_support(references, predictions, average="micro", zero_division=0)
    by_type = precision_recall_fscore_support(references, predictions, average=None, zero_division=0)[2]
    scores = dict(zip(ENTITY_METRICS, overall, strict=False)) | dict(
        zip((f"f1_{kind}" for kind in types), by_type, strict=True)
    )
    return {name: float(value) for name, value in scores.items()}


def _class_ids(evaluation):
    logits, references = evaluation.predictions, np.asarray(evaluation.label_ids)
    predictions = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    if predictions.ndim == references.ndim:
        return predictions, references  # keep_argmax was here
    if predictions.shape[-1] < 2:
        raise ValueError(
            f"logits of shape {predictions.shape} have one column, so they name no class. "
            "Load the model with num_labels=... or id2label=..., at least two."
        )
    return predictions.argmax(-1), references


def _check(predictions, references):
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions but {len(references)} references: pass one of each for every row."
        )
    if len(references) == 0:
        raise ValueError("no predictions and no references: there is nothing to score.")
    kinds = [{_kind(value) for value in side[:1000]} for side in (predictions, references)]
    if "fraction" in set.union(*kinds):
        raise ValueError("found fractions where classes belong. Pass class ids: logits.argmax(-1).")
    if "list" not in kinds[0] and kinds[0] != kinds[1]:
        found = [" and ".join(sorted(side)) for side in kinds]
        raise ValueError(f"predictions are {found[0]}, references {found[1]}. Pass ids for both, or names for both.")


def _kind(value):
    if isinstance(value, (list, tuple, np.ndarray)):
        return "list"
    if isinstance(value, (float, np.floating)) and value != int(value):
        return "fraction"
    return "text" if isinstance(value, str) else "numbers"


def _check_tags(predictions, references):
    _check(predictions, references)
    for row, (found, wanted) in enumerate(zip(predictions, references, strict=True), 1):
        if isinstance(wanted, str) or isinstance(found, str):
            raise ValueError(
                f"sentence {row}: found text where a list of tags belongs. Pass one list for each sentence."
            )
        if len(found) != len(wanted):
            raise ValueError(f"sentence {row}: {len(found)} predicted tags but {len(wanted)} reference tags.")


def _known(name, names):
    if name not in names:
        close = "".join(f" (closest: {match})" for match in get_close_matches(str(name), names, 1, 0.3))
        raise ValueError(f'unknown metric "{name}"{close}. Known here: {", ".join(names)}.')
    return name


def _name(names, number):
    """The name of a class id, from a list of names or an `id2label`."""
    try:
        return names[int(number)]
    except (IndexError, KeyError):
        raise ValueError(f"class id {number} has no name: names has {len(names)}. Pass the model's id2label.") from None


def _plain(values):
    """Tensors and columns as arrays or lists; arrays and lists as they are."""
    return (
        values
        if isinstance(values, (list, np.ndarray))
        else np.asarray(values)
        if hasattr(values, "dtype")
        else list(values)
    )


def _listed(values):
    return [] if values is None else values.tolist() if hasattr(values, "tolist") else list(values)


def _take(values, index):
    return values[index] if isinstance(values, np.ndarray) else [values[i] for i in index]
