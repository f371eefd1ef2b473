"""Scores that need no network, intervals around them, comparisons of two models, `compute_metrics` for the Trainer.

>>> from helpers import metrics
>>> metrics.score("f1_macro", [0, 1, 1, 0], [0, 1, 0, 0])
0.7333333333333334

A metric goes by its name: "accuracy", "precision_macro", "recall_macro", "f1_macro", the same with "_weighted", and for
tags "entity_precision", "entity_recall", "entity_f1". As in scikit-learn, an average is over the classes that occur in
the references or in the predictions, and a score that would divide by zero is 0.

For texts there are "exact_match", "token_f1", "rouge1", "rouge2", "rougeL" (means over rows, 0 to 1; a row with several
references counts its best one) and "bleu", "chrf" (of all texts together, 0 to 100). For English they give the numbers
of the SQuAD v1.1 script, of rouge_score without stemming, and of sacrebleu. Those scripts know the letters a-z only, so
here letters are those of any script, and where words have no blanks between them (Chinese, Japanese, Thai) each letter
is a word. sacrebleu's BLEU does not cut such texts: take "chrf" there.
"""

import functools
import math
import re
import string
import tempfile
import unicodedata
from collections import Counter
from difflib import get_close_matches
from itertools import zip_longest
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

KINDS = ("precision", "recall", "f1")
CLASS_METRICS = ("accuracy", *(f"{kind}_{average}" for average in ("macro", "weighted") for kind in KINDS))
ENTITY_METRICS = tuple(f"entity_{kind}" for kind in KINDS)
CORPUS_METRICS = ("bleu", "chrf")  # of all texts together, not a mean over rows
TEXT_METRICS = ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL", *CORPUS_METRICS)
METRICS = CLASS_METRICS + ENTITY_METRICS + TEXT_METRICS
# Letters of scripts without blanks between words, each with its marks; and what is neither letter nor symbol: SQuAD's
# punctuation is that of ASCII, to which comes that of other scripts, but not “ ” – of Latin, which its script keeps.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}&&\p{L}]\p{M}*"
PUNCTUATION = rf"[{re.escape(string.punctuation)}]|[\p{{P}}--[\x00-\u036f\u2000-\u206f]]"
TO_TEXT = (
    'Pass the text alone, no answer as "". In a Trainer metrics.for_texts(tokenizer) decodes ids; elsewhere fill their '
    "-100 first: tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)."
)
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


class Difference(NamedTuple):
    """How far one model is ahead of another, in points (hundredths of a score from 0 to 1), and of how many runs.

    >>> print(Difference(3.04, 0.51, 5.49, seeds=3, rows=600))
    +3.0 points [+0.5, +5.5], 3 seeds x 600 rows
    """

    points: float
    low: float
    high: float
    seeds: int
    rows: int

    def __str__(self):
        points, low, high = (f"{number:+.1f}" for number in self[:3])
        return f"{points} points [{low}, {high}], {self.seeds} seed{'s' * (self.seeds > 1)} x {self.rows} rows"


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

    Taught in notebooks/02_generation.ipynb, "Round 2: fine-tune".
    """
    row_outcomes, outcomes, score_sums = _outcomes(metric, predictions, references)
    counts = np.bincount(row_outcomes)
    return float(score_sums(counts[None] @ outcomes)[0])


def Metric(name):
    """Any metric of this module as an `evaluate.Metric`: `compute`, `add`, `add_batch`, and for `evaluate.combine`.

    `evaluate.load` fetches its scripts from the Hub and so fails without a network; this one does not. `evaluate` is
    imported at the first call, because that takes seconds.

    >>> Metric("accuracy").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    {'accuracy': 0.75}

    Taught in notebooks/01_classification.ipynb, "What it has to beat".
    """
    return _metric_class()(_known(name, METRICS))


@functools.cache
def _metric_class():
    import evaluate
    from datasets import Features, List, Value

    folder = tempfile.TemporaryDirectory(prefix="metrics-")  # evaluate makes a folder also when all stays in memory
    number, text, texts = Value("int64"), Value("string"), List(Value("string"))

    class Metric(evaluate.Metric):
        def __init__(self, name):
            super().__init__(name, keep_in_memory=True, cache_dir=folder.name)

        def _info(self):
            kinds = [(text, text), (number, number)]  # evaluate takes the first that fits
            if self.config_name not in CLASS_METRICS:
                kinds = [(texts if self.config_name in ENTITY_METRICS else text, texts)]
            features = [Features(predictions=one, references=other) for one, other in kinds]
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def add(self, *, prediction=None, reference=None, **rows):
            """Adds one prediction and its reference."""
            rows = {"predictions": prediction, "references": reference} | rows  # `combine` passes the plural names
            self.add_batch(**{name: [row] for name, row in rows.items()})

        def add_batch(self, *, predictions=None, references=None):
            """Adds predictions and references of the same length."""
            kinds = {CLASS_METRICS: _classes, ENTITY_METRICS: _tags, TEXT_METRICS: _texts}
            check = next(check for names, check in kinds.items() if self.config_name in names)
            predictions, references = check(predictions, references)
            super().add_batch(predictions=predictions, references=references)

        def _compute(self, predictions, references):
            return {self.config_name: score(self.config_name, predictions, references)}

    return Metric


def interval(metric, predictions, references, *, n=1000, confidence=0.95, seed=0):
    """A metric with its percentile bootstrap interval: how much it could change with other rows of the same kind.

    Draws as many rows (for entities: sentences) as there are, with replacement, `n` times. It says nothing of another
    training run: for that see `mean_interval`. It takes the rows as independent, is a little too narrow below some 50
    rows, and has no width at all when every row is right. For a metric that is not of this module there is
    `scipy.stats.bootstrap` with paired=True.

    >>> interval("accuracy", [0, 1] * 100, [0, 1] * 80 + [1, 0] * 20)
    Interval(value=0.8, low=0.74, high=0.855)

    Taught in notebooks/01_classification.ipynb, "How good is it?".
    """
    row_outcomes, outcomes, score_sums = _outcomes(metric, predictions, references)
    draws = _draws(np.bincount(row_outcomes), n, np.random.default_rng(seed))
    return Interval(*_with_middle(score_sums(draws @ outcomes), confidence))


def compare(metric, predictions, others, references, *, n=1000, confidence=0.95, seed=0):
    """How far `predictions` are ahead of `others` on the same rows: a `Difference` in points, with its interval.

    Each side is a list of rows, or a list of such lists, one for each training seed, in the same order; a single list
    beside several stands for all seeds, such as a baseline. A bootstrap draw takes rows with replacement, the same for
    both sides and all seeds, and seeds with replacement; what counts is the mean of the differences within the seeds.

    With one seed that is the paired bootstrap, which says nothing of another training run. With two or three it hardly
    reaches beyond the lowest and the highest seed: where seeds differ more than rows do, see also `mean_interval` of
    their differences. `ValueError` as for `score`, and for sides with different numbers of seeds.

    Rows are drawn once for all seeds because the seeds share them (Owen 2007, "The pigeonhole bootstrap",
    https://doi.org/10.1214/07-AOAS122): three copies of one run are no more evidence than one. The interval errs on
    the safe side: where all chance lies in the pair of a row and a seed it is 1.5 times too wide for three seeds.

    >>> references = [0, 1] * 100
    >>> full, lora = [0, 1] * 80 + [1, 0] * 20, [0, 1] * 85 + [1, 0] * 15
    >>> print(compare("accuracy", lora, full, references))
    +5.0 points [+2.0, +8.0], 1 seed x 200 rows

    Taught in notebooks/02_generation.ipynb, "Round 3: how good is it?".
    """
    sides = [_seeds(metric, side) for side in (predictions, others)]
    n_seeds = max(map(len, sides))
    sides = [side * n_seeds if len(side) == 1 else side for side in sides]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"{len(sides[0])} seeds against {len(sides[1])}: pass the same seeds, in the same order.")
    runs = [_outcomes(metric, run, references) for side in sides for run in side]
    # The outcome of a row is that of all runs together: a column of numbers for each run.
    together, counts = np.unique(np.column_stack([run[0] for run in runs]), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    draws = _draws(counts, n, rng)
    scores = [
        score_sums(draws @ outcomes[numbers])
        for (_, outcomes, score_sums), numbers in zip(runs, together.T, strict=True)
    ]
    ahead = np.subtract(scores[:n_seeds], scores[n_seeds:]).T  # shape (1 + n, seeds)
    points = (ahead * _draws(np.ones(n_seeds, int), n, rng)).mean(1) * (1 if metric in CORPUS_METRICS else 100)
    return Difference(*_with_middle(points, confidence), n_seeds, int(counts.sum()))


def _draws(counts, n, rng):
    """How often each outcome occurs: first as measured, then in `n` draws. Shape (1 + n, outcomes).

    Rows with the same outcome are interchangeable, so this is the same as drawing row by row.
    """
    return np.vstack([counts, rng.multinomial(counts.sum(), counts / counts.sum(), size=n)])


def _with_middle(values, confidence):
    """The first value, and the ends of the middle part of the others, such as the middle 95 %."""
    first, *drawn = values
    if not 0 < confidence < 1 or not drawn:
        raise ValueError(f"confidence={confidence}, n={len(drawn)}: confidence lies between 0 and 1, n is at least 1.")
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(first), float(low), float(high)


def mean_interval(values, confidence=0.95):
    """The mean over a few seeds with its Student t interval.

    Assumes that the runs are independent and spread like a normal distribution. With 3 seeds the interval is wide (4.3
    standard errors to each side), and rightly so; it may reach beyond 0 or 1. It is about other seeds on the same test
    rows, not about other rows: for those see `interval`.

    >>> print(mean_interval([0.80, 0.82, 0.84]))
    0.82 [0.77, 0.87]

    Taught in notebooks/04_lora.ipynb, "Round 3: is it as good?".
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

    Taught in notebooks/02_generation.ipynb, "Round 4: three mistakes that raise no error".
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
                    names = ", ".join(batch)
                    raise ValueError(f"batch {number} has no labels, only {names}. Add them: -100 where none counts.")
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

    Taught in notebooks/02_generation.ipynb, "The loss, by hand".
    """
    total, n = float(total_loss), float(n_tokens)
    if not (0 <= total < math.inf and n >= 1 and n.is_integer()):
        raise ValueError(
            f"perplexity(total_loss={total_loss}, n_tokens={n_tokens}): expected a finite sum of losses, and one token "
            "or more. 0 tokens: every label is -100, or a generator of batches was used up. nan: the mean of a batch "
            "without tokens (take metrics.total_loss), or a model that has diverged."
        )
    return math.exp(total / n) if total / n < 700 else math.inf


# ---- For the Trainer ----------------------------------------------------------------------------------


def for_trainer(*names):
    """A `compute_metrics` for sequence classification; accuracy and f1_macro unless you name others.

    Takes logits (also as the first of a tuple) or, after `keep_argmax` class ids. Rows with the label -100 do not
    count. The names get no prefix here: the Trainer adds `eval_`.

    >>> from transformers import EvalPrediction
    >>> compute_metrics = for_trainer("accuracy")
    >>> compute_metrics(EvalPrediction(predictions=np.array([[2.0, 1.0], [0.5, 3.0]]), label_ids=np.array([0, 0])))
    {'accuracy': 0.5}

    Taught in notebooks/01_classification.ipynb, "How much of the work is padding?".
    """
    names = names or ("accuracy", "f1_macro")
    for name in names:
        _known(name, CLASS_METRICS)

    def compute_metrics(evaluation):
        predictions, references = _class_ids(evaluation)
        if references.ndim == 1:
            predictions, references = predictions[references != IGNORED], references[references != IGNORED]
        return {name: score(name, predictions, references) for name in names}

    return compute_metrics


def for_tokens(names):
    """A `compute_metrics` for token classification: BIO tags from logits and label ids, then entity scores.

    `names` are the tags in the order of their ids, or the model's `id2label`. Tokens with label -100 (special tokens,
    continued words) do not count.

    >>> from transformers import EvalPrediction
    >>> compute_metrics = for_tokens(["O", "B-PER"])
    >>> compute_metrics(EvalPrediction(predictions=np.array([[0, 1, 0]]), label_ids=np.array([[-100, 1, -100]])))
    {'entity_precision': 1.0, 'entity_recall': 1.0, 'entity_f1': 1.0, 'f1_PER': 1.0}

    Taught in notebooks/more/01b_named_entities.ipynb, "Train and score".
    """

    def compute_metrics(evaluation):
        predictions, references = _class_ids(evaluation)
        sides = [], []
        for predicted, true in zip(predictions, references, strict=True):
            for side, ids in zip(sides, (predicted, true), strict=True):
                side.append([_name(names, number) for number in ids[true != IGNORED]])
        return _entity_scores(*sides)

    return compute_metrics


def for_texts(tokenizer, *names):
    """A `compute_metrics` for texts; exact_match and rougeL unless you name others.

    For an encoder-decoder in a `Seq2SeqTrainer` with `predict_with_generate=True`, which fills the ids of shorter rows,
    of labels and of answers, with -100: these, padding and the other special tokens are left out. A decoder's trainer
    predicts each token after the right ones, which is no text: score what `generate.texts` writes.

    >>> from transformers import AutoTokenizer, EvalPrediction
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> ids = tokenizer(["a red door", "blue"], padding=True, return_tensors="np")["input_ids"]
    >>> labels = np.where(ids == tokenizer.pad_token_id, -100, ids)
    >>> for_texts(tokenizer, "exact_match")(EvalPrediction(predictions=ids, label_ids=labels))
    {'exact_match': 1.0}
    """
    names = names or ("exact_match", "rougeL")
    for name in names:
        _known(name, TEXT_METRICS)

    def compute_metrics(evaluation):
        sides = [_decoded(tokenizer, ids) for ids in (evaluation.predictions, evaluation.label_ids)]
        return {name: score(name, *sides) for name in names}

    return compute_metrics


def _decoded(tokenizer, ids):
    """The texts of rows of token ids, which may come in batches; ids below 0 are filled in."""
    parts = ids[0] if isinstance(ids, tuple) else _listed(ids) if ids is None else ids
    rows = [row for part in parts for row in np.atleast_2d(part)]
    if any(row.size and row.dtype.kind not in "iu" for row in rows):
        raise ValueError(
            "these are no token ids, but numbers with fractions, such as logits. Take a Seq2SeqTrainer with "
            "predict_with_generate=True; for a decoder score the texts of generate.texts."
        )
    return [tokenizer.decode(row[row >= 0].astype(int), skip_special_tokens=True).strip() for row in rows]


def keep_argmax(logits, labels):
    """For `preprocess_logits_for_metrics`: keeps the chosen class only, so that evaluation does not pile up logits.

    >>> keep_argmax(np.array([[2.0, 1.0], [0.5, 3.0]]), None)
    array([0, 1])
    """
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


# ---- What the functions above share -------------------------------------------------------------------


def _outcomes(metric, predictions, references):
    """For each row the number of its outcome; of each outcome what adds up over rows; the scores of such sums.

    Shapes: (rows,), (outcomes, k), and a function from (draws, k) to (draws,).
    """
    if _known(metric, METRICS) in CLASS_METRICS:
        return _class_outcomes(metric, predictions, references)
    read = _entity_statistics if metric in ENTITY_METRICS else _text_statistics
    statistics, score_sums = read(metric, predictions, references)
    outcomes, row_outcomes = np.unique(statistics, axis=0, return_inverse=True)
    return row_outcomes.reshape(-1), outcomes, score_sums


def _class_outcomes(metric, predictions, references):
    predictions, references = _classes(predictions, references)
    classes, ids = np.unique(np.concatenate([predictions, references]), return_inverse=True)
    pairs, row_outcomes = np.unique(ids.reshape(2, -1), axis=1, return_inverse=True)
    predicted, true = np.eye(len(classes))[pairs]
    outcomes = np.hstack([predicted * true, predicted, true])  # of each class: right, predicted, there are
    return row_outcomes.reshape(-1), outcomes, functools.partial(_class_scores, metric)


def _class_scores(metric, sums):
    right, predicted, true = np.split(sums, 3, axis=-1)
    if metric == "accuracy":
        return right.sum(-1) / true.sum(-1)
    weights = true if metric.endswith("weighted") else predicted + true > 0
    return (_ratio(metric, right, predicted, true) * weights).sum(-1) / weights.sum(-1)


def _ratio(metric, right, predicted, true):
    """Precision, recall or F1; 0 where it would divide by zero."""
    kind = next(kind for kind in KINDS if kind in metric)
    above = 2 * right if kind == "f1" else right
    below = {"precision": predicted, "recall": true, "f1": predicted + true}[kind]
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def _entity_statistics(metric, predictions, references):
    """For each sentence: entities that are right, entities predicted, entities there are."""
    from seqeval.metrics.sequence_labeling import get_entities

    predictions, references = _tags(predictions, references)
    spans = [[set(get_entities(list(tags))) for tags in side] for side in (predictions, references)]
    counts = [(len(predicted & true), len(predicted), len(true)) for predicted, true in zip(*spans, strict=True)]
    return np.array(counts), lambda sums: _ratio(metric, *sums.T)


def _entity_scores(predictions, references):
    """The entity metrics, and the F1 of each type of entity."""
    from seqeval.metrics import classification_report

    scores = {name: score(name, predictions, references) for name in ENTITY_METRICS}
    if not any(tag != "O" for side in (predictions, references) for tags in side for tag in tags):
        return scores  # seqeval fails when there is no entity at all
    by_type = classification_report(references, predictions, output_dict=True, zero_division=0)
    return scores | {f"f1_{kind}": float(by_type[kind]["f1-score"]) for kind in by_type if not kind.endswith(" avg")}


def _text_statistics(metric, predictions, references):
    """Numbers of each row that add up, shape (rows, k), and a function from such sums, (draws, k), to scores."""
    predictions, references = _texts(predictions, references)
    if metric in CORPUS_METRICS:
        import sacrebleu

        scorer = sacrebleu.BLEU() if metric == "bleu" else sacrebleu.CHRF()
        # What sacrebleu's own bootstrap uses. Reading 500 texts again for each of 1,000 draws takes over a minute.
        rows = scorer._extract_corpus_statistics(predictions, list(zip_longest(*references)))
        return np.array(rows), lambda sums: np.array([scorer._compute_score_from_stats(s).score for s in sums.tolist()])
    compare_one = _comparison(metric)
    pairs = zip(predictions, references, strict=True)
    best = [max(compare_one(text, reference) for reference in several) for text, several in pairs]
    return np.column_stack([best, np.ones(len(best))]), lambda sums: sums[:, 0] / sums[:, 1]


def _comparison(metric):
    """The function that compares one text with one reference."""
    if metric == "exact_match":
        return lambda text, reference: float(_words(text) == _words(reference))
    if metric == "token_f1":
        return _token_f1
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([metric], tokenizer=SimpleNamespace(tokenize=_letters))
    return lambda text, reference: scorer.score(reference, text)[metric].fmeasure


def _words(text):
    """The words of a text as the SQuAD v1.1 script sees them: "It's the U.S." has two, "its" and "us"."""
    import regex

    text = regex.sub(PUNCTUATION, "", _same_letters(text), flags=regex.V1)  # first, so that "the," is an article
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return regex.sub(f"({UNSPACED})", r" \1 ", text, flags=regex.V1).split()


def _letters(text):
    """The words of a text as rouge_score sees them, in any script: runs of letters and digits, and each emoji."""
    import regex

    word = rf"(?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d])+"
    return regex.findall(rf"{UNSPACED}|{word}|\p{{So}}", _same_letters(text), flags=regex.V1)


def _same_letters(text):
    return unicodedata.normalize("NFC", text.lower())  # an accent may be part of its letter, or a sign of its own


def _token_f1(text, reference):
    words, true = _words(text), _words(reference)
    shared = (Counter(words) & Counter(true)).total()  # nothing shared is 0 in v1.1, also when both have no words
    return 2 * shared / (len(words) + len(true)) if shared else 0.0


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


def _seeds(metric, side):
    """The runs of one side, one for each seed, from one run or a list of runs."""
    runs = [side] if isinstance(side, str) else _listed(side)
    rows = runs[0] if runs and _kind(runs[0]) == "list" else []
    rows_are_lists = metric in ENTITY_METRICS
    several = any(_kind(row) == "list" for row in rows) if rows_are_lists else len(rows)
    return runs if several else [side]


def _listed(values):
    return [] if values is None else values.tolist() if hasattr(values, "tolist") else list(values)


def _rows(predictions, references):
    """Both sides as lists of the same length, with something in them."""
    for name, side in (("predictions", predictions), ("references", references)):
        if isinstance(side, str):  # else its characters would be scored as rows
            raise ValueError(f"{name} is one text. Pass a list, also for a single row: [{name}].")
    predictions, references = _listed(predictions), _listed(references)
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references: pass one each for a row.")
    if not references:
        raise ValueError("no predictions and no references: there is nothing to score.")
    return predictions, references


def _classes(predictions, references):
    predictions, references = _rows(predictions, references)
    kinds = [{_kind(value) for value in side} for side in (predictions, references)]
    if odd := set.union(*kinds) & {"fraction", "list", "missing value"}:
        raise ValueError(
            f"a row has a {' and a '.join(sorted(odd))} where one class belongs. Pass logits.argmax(-1), and no rows "
            'without a label; for tags take metrics.for_tokens or "entity_f1", for generated ids metrics.for_texts.'
        )
    if kinds[0] != kinds[1]:
        names = [" and ".join(sorted(side)) for side in kinds]
        raise ValueError(f"predictions are {names[0]}, references {names[1]}. Pass ids for both, or names for both.")
    return predictions, references


def _kind(value):
    if isinstance(value, (list, tuple, np.ndarray)):
        return "list"
    if value is None or value != value:  # NaN
        return "missing value"
    if isinstance(value, (float, np.floating)) and value != int(value):
        return "fraction"
    return "text" if isinstance(value, str) else "numbers"


def _tags(predictions, references):
    predictions, references = _rows(predictions, references)
    for number, (predicted, true) in enumerate(zip(predictions, references, strict=True), 1):
        if {_kind(predicted), _kind(true)} != {"list"}:
            raise ValueError(f"sentence {number}: {predicted!r:.30} and {true!r:.30} are not two lists of tags.")
        if len(predicted) != len(true):
            raise ValueError(f"sentence {number}: {len(predicted)} predicted tags but {len(true)} reference tags.")
        for tag in dict.fromkeys([*predicted, *true]):
            if not re.fullmatch(r"O|[BIES](-.+)?", str(tag)):
                cure = "Entities are scored by the tags O, B-X and I-X: see data.check_tokens. Else take accuracy."
                raise ValueError(f'sentence {number}: the tag "{tag}" is of no entity. {cure}')
    return predictions, references


def _texts(predictions, references):
    """Texts, and for each a list of references; `ValueError` for all that is no text."""
    predictions, references = _rows(predictions, references)
    references = [list(texts) if _kind(texts) == "list" else [texts] for texts in references]
    for number, (prediction, several) in enumerate(zip(predictions, references, strict=True), 1):
        if not several:
            raise ValueError(f"row {number} has an empty list of references. Leave it out: nothing can be right there.")
        for name, text in [("prediction", prediction), *(("reference", text) for text in several)]:
            if not isinstance(text, str):
                raise ValueError(f"row {number}: the {name} is {text!r:.60}, not text. {TO_TEXT}")
    return predictions, references


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
