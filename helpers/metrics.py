"""Metrics that need no network, intervals around them, and `compute_metrics` for the Trainer.

    metrics.Accuracy(), metrics.Precision(), metrics.Recall(), metrics.F1(), metrics.EntityF1()
    metrics.ExactMatch(), metrics.TokenF1(), metrics.Rouge(), metrics.Bleu(), metrics.Chrf()

are `evaluate.Metric` classes: use `compute`, `add`, `add_batch` and `evaluate.combine` as with `evaluate.load`, which
fetches its scripts from the Hub and so fails without a network. They are made when first asked for, because
`import evaluate` takes seconds; everything else in this module works without it.

>>> from helpers import metrics
>>> metrics.F1(average="macro").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
{'f1_macro': 0.7333333333333334}

The functions go by name: "accuracy", "precision_macro", "recall_macro", "f1_macro", the same with "_weighted", and for
tags "entity_precision", "entity_recall", "entity_f1". As in scikit-learn, an average is over the classes that occur in
the references or in the predictions, and a score that would divide by zero is 0.

For texts there are "exact_match", "token_f1", "rouge1", "rouge2", "rougeL" (means over rows, 0 to 1; a row with several
references counts its best one) and "bleu", "chrf" (of all texts together, 0 to 100). They give the numbers of the SQuAD
v1.1 script, of rouge_score without stemming, which sees only the letters a-z and digits, and of sacrebleu.
"""

import functools
import math
import re
import string
from collections import Counter
from difflib import get_close_matches
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

KINDS = ("precision", "recall", "f1")
CLASS_METRICS = ("accuracy", *(f"{kind}_{average}" for average in ("macro", "weighted") for kind in KINDS))
ENTITY_METRICS = tuple(f"entity_{kind}" for kind in KINDS)
CORPUS_METRICS = ("bleu", "chrf")  # of all texts together, not a mean over rows
TEXT_METRICS = ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL", *CORPUS_METRICS)
MODULES = ("Accuracy", "Precision", "Recall", "F1", "EntityF1", "ExactMatch", "TokenF1", "Rouge", "Bleu", "Chrf")
PUNCTUATION = str.maketrans("", "", string.punctuation)  # takes it out of a text; ASCII only, as in SQuAD's script
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
    """The value of a metric, by its name; the same number as the library's that it stands for.

    Takes class ids or class names; for the entity metrics one list of BIO tags for each sentence; for the text metrics
    texts, where a reference may be a list of texts that are all right. `ValueError` when the lengths differ, when there
    is nothing to score, when something is no text, or when the metric is unknown.

    >>> score("accuracy", [0, 1, 1, 0], [0, 1, 0, 0])
    0.75
    >>> score("entity_f1", [["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]])
    0.0
    >>> score("token_f1", ["The red door.", "blue"], ["red door", ["green", "dark blue"]])
    0.8333333333333333

    Taught in notebooks/02_generation.ipynb, "Before training".
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


# ---- Loss over tokens ---------------------------------------------------------------------------------


def total_loss(model, batches):
    """The loss summed over the tokens that are trained on, in nats, and how many they are.

    `batches` are dicts of tensors with "labels", -100 where a token does not count. Taken from the logits without
    gradients, in evaluation mode; every module is left in the mode it was in. Divide the total once, at the end. The
    mean of the batches' mean losses is wrong: a token in a batch with few of them would weigh more than one in a batch
    with many, so the result would change with the batch size and the order of the rows.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **small))
    >>> _ = torch.nn.init.zeros_(model.lm_head.weight)  # all 16 tokens are equally likely
    >>> ids = torch.tensor([[3, 4, 5]])
    >>> total, n_tokens = total_loss(model, [{"input_ids": ids, "labels": ids}])
    >>> print(f"{n_tokens} tokens, perplexity {perplexity(total, n_tokens):.1f}")
    2 tokens, perplexity 16.0

    Taught in notebooks/02_generation.ipynb, "Round 2: three silent failures".
    """
    import torch
    from torch.nn.functional import cross_entropy, pad

    shifted = model.can_generate() and not model.config.is_encoder_decoder  # a decoder's logits are for the next token
    # With a cache the library does not look for packed examples, and each would see those before it.
    options = {"use_cache": False} if shifted else {}
    training = [module for module in model.modules() if module.training]
    total, n_tokens = 0.0, 0
    model.eval()
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches, 1):
                if batch.get("labels") is None:
                    found = ", ".join(batch)
                    raise ValueError(f"batch {number} has no labels, only {found}. Add them: -100 where none counts.")
                batch = {name: value.to(model.device) for name, value in batch.items()}
                logits, labels = model(**{**batch, **options}).logits, batch["labels"]
                # Prompt tuning puts tokens of its own in front of the text: as in peft, they do not count.
                labels = pad(labels, (logits.shape[-2] - labels.shape[-1], 0), value=IGNORED)
                if shifted:
                    logits, labels = logits[:, :-1], labels[:, 1:]
                flat = logits.flatten(0, -2).float(), labels.flatten()
                total += cross_entropy(*flat, ignore_index=IGNORED, reduction="sum").item()
                n_tokens += (labels != IGNORED).sum().item()
    finally:
        for module in training:
            module.training = True
    return total, n_tokens


def perplexity(total_loss, n_tokens):
    """How many equally likely tokens the model hesitates between: exp(total loss / number of tokens).

    Takes what `total_loss` returns: a sum, in nats, not a mean. Compare it only between models with the same tokenizer.
    `ValueError` for no tokens, or for a loss that no sum can be.

    >>> print(f"{perplexity(4.0 + 9 * 1.0, 1 + 9):.2f}")  # one token with loss 4, nine with loss 1
    3.67
    >>> print(f"{np.exp(np.mean([4.0, 1.0])):.2f}")  # the same in two batches, by the mean of their means: wrong
    12.18

    Taught in notebooks/02_generation.ipynb, "Round 2: three silent failures".
    """
    total, n = float(total_loss), float(n_tokens)
    if n == 0:
        raise ValueError(
            "0 tokens count: every label is -100, or no batch came (a generator gives its batches once only). "
            "Look at the labels of one batch."
        )
    if n < 0 or not n.is_integer():
        raise ValueError(f"n_tokens={n_tokens} is no number of tokens. The order is perplexity(total_loss, n_tokens).")
    if not 0 <= total < math.inf:
        raise ValueError(
            f"total_loss={total}: a sum of losses is finite and not negative. nan is what a mean over no tokens gives: "
            "take metrics.total_loss, not the mean of a batch; or the model itself has diverged."
        )
    return math.exp(total / n) if total / n < 700 else math.inf


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
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for kind in (*_metric_classes(), *_text_metric_classes()):
        kind.__qualname__ = kind.__name__  # so that it pickles and prints as a class of this module
        globals()[kind.__name__] = kind
    return globals()[name]


@functools.cache
def _base_class():
    """What our metrics share: labels of either kind, checks with clear errors, no file left behind."""
    import evaluate
    from datasets import Features, Value

    class Metric(evaluate.Metric):
        # Of predictions and references: names or ids; evaluate takes the first that fits.
        kinds = ((Value("string"), Value("string")), (Value("int64"), Value("int64")))
        checked = staticmethod(_checked)

        def __init__(self, config_name=None, **kwargs):
            # What is added stays in memory; evaluate makes its cache folder all the same.
            kwargs = {"keep_in_memory": kwargs.get("num_process", 1) == 1, "cache_dir": _cache_folder().name} | kwargs
            super().__init__(config_name, **kwargs)

        def _info(self):
            text = type(self).__doc__
            options = [Features(predictions=found, references=wanted) for found, wanted in self.kinds]
            return evaluate.MetricInfo(description=text, citation="", inputs_description=text, features=options)

        def add(self, *, prediction=None, reference=None, **kwargs):
            """Adds one prediction and its reference."""
            one = {"predictions": prediction, "references": reference} | kwargs  # `combine` passes the plural names
            self.add_batch(**{name: [value] for name, value in one.items()})

        def add_batch(self, *, predictions=None, references=None, **kwargs):
            """Adds predictions and references of the same length."""
            predictions, references = self.checked(predictions, references)
            super().add_batch(predictions=predictions, references=references, **kwargs)

        def compute(self, *, predictions=None, references=None, **kwargs):
            """Scores these, or what was added before; then forgets it."""
            if predictions is None and references is None and self.writer is None:
                _check_rows([], [])
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

        kinds = ((List(Value("string")), List(Value("string"))),)

        def _compute(self, predictions, references):
            return _entity_scores(predictions, references)

    return Accuracy, Precision, Recall, F1, EntityF1


@functools.cache
def _text_metric_classes():
    from datasets import List, Value

    class Text(_base_class()):
        kinds = ((Value("string"), List(Value("string"))),)
        checked = staticmethod(_texts)
        names = ()

        def _compute(self, predictions, references):
            return {name: score(name, predictions, references) for name in self.names}

    class ExactMatch(Text):
        """The share of texts that equal a reference but for case, punctuation and articles: {"exact_match"}."""

        names = ("exact_match",)

    class TokenF1(Text):
        """The F1 of the words shared with the best reference, mean over rows: {"token_f1"}."""

        names = ("token_f1",)

    class Rouge(Text):
        """The F1 of shared words, word pairs and the longest common subsequence: {"rouge1", "rouge2", "rougeL"}."""

        names = ("rouge1", "rouge2", "rougeL")

    class Bleu(Text):
        """The precision of runs of up to four words, of all texts together, 0 to 100: {"bleu"}."""

        names = ("bleu",)

    class Chrf(Text):
        """The F score of runs of up to six characters, of all texts together, 0 to 100: {"chrf"}."""

        names = ("chrf",)

    return ExactMatch, TokenF1, Rouge, Bleu, Chrf


@functools.cache
def _cache_folder():
    import tempfile

    return tempfile.TemporaryDirectory(prefix="metrics-")


# ---- What the functions above share -------------------------------------------------------------------


def _counted(metric, predictions, references):
    """The outcomes that occur and how often, and a function from such counts, shape (draws, outcomes), to scores."""
    if _known(metric, CLASS_METRICS + ENTITY_METRICS + TEXT_METRICS) in TEXT_METRICS:
        rows, evaluate_sums = _text_statistics(metric, predictions, references)
        outcomes, counts = np.unique(rows, axis=0, return_counts=True)
        return lambda draws: evaluate_sums(draws @ outcomes), counts
    predictions, references = _plain(predictions), _plain(references)
    if metric in ENTITY_METRICS:
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


def _text_statistics(metric, predictions, references):
    """Numbers of each row that add up, shape (rows, k), and a function from such sums, (draws, k), to scores."""
    predictions, references = _texts(predictions, references)
    if metric in CORPUS_METRICS:
        import sacrebleu

        scorer = sacrebleu.BLEU() if metric == "bleu" else sacrebleu.CHRF()
        # What sacrebleu's own bootstrap uses. Reading 500 texts again for each of 1,000 draws takes over a minute.
        rows = scorer._extract_corpus_statistics(predictions, list(zip_longest(*references)))
        return np.array(rows), lambda sums: np.array([scorer._compute_score_from_stats(s).score for s in sums.tolist()])
    compare = _comparison(metric)
    pairs = zip(predictions, references, strict=True)
    best = [max(compare(found, wanted) for wanted in several) for found, several in pairs]
    return np.column_stack([best, np.ones(len(best))]), lambda sums: sums[:, 0] / sums[:, 1]


def _comparison(metric):
    """The function that compares one text with one reference."""
    if metric == "exact_match":
        return lambda found, wanted: float(_words(found) == _words(wanted))
    if metric == "token_f1":
        return _token_f1
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([metric], use_stemmer=False)
    return lambda found, wanted: scorer.score(wanted, found)[metric].fmeasure


def _words(text):
    """The words of a text as the SQuAD v1.1 script sees them: "It's the U.S." has two, "its" and "us"."""
    text = text.lower().translate(PUNCTUATION)  # first, so that "the," is an article
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _token_f1(found, wanted):
    found, wanted = _words(found), _words(wanted)
    shared = (Counter(found) & Counter(wanted)).total()  # nothing shared is 0 in v1.1, also when both have no words
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


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


def _checked(predictions, references):
    predictions, references = _listed(predictions), _listed(references)
    _check(predictions, references)
    return predictions, references


def _texts(predictions, references):
    """Texts, and for each a list of references; `ValueError` for all that is no text."""
    for name, side in (("predictions", predictions), ("references", references)):
        if isinstance(side, str):  # else its characters would be scored as rows
            raise ValueError(f"{name} is one text. Pass a list, also for a single row: [{name}].")
    predictions, references = _listed(predictions), _listed(references)
    _check_rows(predictions, references)
    references = [_several(row, wanted) for row, wanted in enumerate(references, 1)]
    for row, (found, several) in enumerate(zip(predictions, references, strict=True), 1):
        for name, text in [("prediction", found), *(("reference", one) for one in several)]:
            if not isinstance(text, str):
                raise ValueError(f"row {row}: the {name} is {text!r:.60}, not text. {_to_text(text)}")
    return predictions, references


def _several(row, references):
    if not isinstance(references, (list, tuple, np.ndarray)):
        return [references]
    if not len(references):
        raise ValueError(f"row {row} has an empty list of references. Leave the row out: nothing can be right there.")
    return list(references)


def _to_text(value):
    if value is None:
        return 'Leave the row out, or pass "" for an answer that is empty.'
    if isinstance(value, dict):
        return "Pass the text in it, or the list of texts."
    return "Decode ids first: tokenizer.batch_decode(ids, skip_special_tokens=True)."


def _check_rows(predictions, references):
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions but {len(references)} references: pass one of each for every row."
        )
    if len(references) == 0:
        raise ValueError("no predictions and no references: there is nothing to score.")


def _check(predictions, references):
    _check_rows(predictions, references)
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
