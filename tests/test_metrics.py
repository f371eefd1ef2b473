"""`metrics` gives the numbers of scikit-learn and seqeval, its intervals cover, its errors are clear."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from helpers import metrics

ROOT = Path(metrics.__file__).parents[1]
RNG = np.random.default_rng(0)


def random_classes(seed):
    rng = np.random.default_rng(seed)
    rows, classes = rng.integers(1, 60), rng.integers(2, 7)
    return rng.integers(classes, size=rows), rng.integers(classes, size=rows)


def random_tags(seed, sentences=None):
    rng = np.random.default_rng(seed)
    tags = np.array(["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    lengths = rng.integers(1, 9, size=sentences or rng.integers(1, 12))
    references = [tags[rng.integers(len(tags), size=n)].tolist() for n in lengths]
    changed = [[tag if rng.random() < 0.7 else str(rng.choice(tags)) for tag in tags_] for tags_ in references]
    return changed, references


def reference(name, predictions, references):
    """The reference library's number."""
    if name.startswith("entity"):
        from seqeval import metrics as seqeval_metrics

        return getattr(seqeval_metrics, f"{name[7:]}_score")(references, predictions, zero_division=0)
    if name == "accuracy":
        return sklearn_metrics.accuracy_score(references, predictions)
    kind, average = name.split("_")
    function = getattr(sklearn_metrics, f"{kind}_score")
    return function(references, predictions, average=average, zero_division=0)


@pytest.mark.parametrize("name", metrics.CLASS_METRICS)
def test_class_scores_equal_scikit_learn(name):
    for seed in range(100):
        predictions, references = random_classes(seed)
        expected = reference(name, predictions, references)
        assert metrics.score(name, predictions, references) == pytest.approx(expected, abs=1e-12)
        words = [[f"class {i}" for i in side] for side in (predictions, references)]
        assert metrics.score(name, *words) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", metrics.ENTITY_METRICS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_entity_scores_equal_seqeval(name):
    for seed in range(100):
        predictions, references = random_tags(seed)
        found = {tag for side in (predictions, references) for tags in side for tag in tags}
        expected = reference(name, predictions, references) if found != {"O"} else 0.0
        assert metrics.score(name, predictions, references) == pytest.approx(expected, abs=1e-12)


def test_entities_by_type_and_none_at_all():
    scores = metrics._entity_scores([["B-PER", "I-PER", "O"], ["B-LOC"]], [["B-PER", "I-PER", "O"], ["B-PER"]])
    expected = {"entity_precision": 0.5, "entity_recall": 0.5, "entity_f1": 0.5, "f1_LOC": 0, "f1_PER": 2 / 3}
    assert scores == pytest.approx(expected)
    assert list(scores) == list(expected)
    assert metrics._entity_scores([["O"]], [["O"]]) == dict.fromkeys(metrics.ENTITY_METRICS, 0.0)


# ---- Metric ----


@pytest.mark.parametrize("name", [*metrics.CLASS_METRICS, *metrics.ENTITY_METRICS])
def test_metric_is_one_of_evaluate_with_the_number_of_score(name):
    import evaluate

    entities = name in metrics.ENTITY_METRICS
    predictions, references = random_tags(4, sentences=6) if entities else random_classes(4)
    metric = metrics.Metric(name)
    assert isinstance(metric, evaluate.Metric)
    expected = {name: metrics.score(name, predictions, references)}
    assert metric.compute(predictions=predictions, references=references) == expected
    assert type(expected[name]) is float
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    for prediction, reference_ in zip(predictions[3:], references[3:], strict=True):
        metric.add(prediction=prediction, reference=reference_)
    assert metric.compute() == expected


def test_metrics_combine():
    import evaluate

    combined = evaluate.combine([metrics.Metric(name) for name in metrics.CLASS_METRICS])
    predictions, references = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    at_once = combined.compute(predictions=predictions, references=references)
    assert at_once == {name: metrics.score(name, predictions, references) for name in metrics.CLASS_METRICS}
    for i in range(2):
        combined.add_batch(predictions=predictions[2 * i :][:2], references=references[2 * i :][:2])
    assert combined.compute() == at_once
    for prediction, reference_ in zip(predictions, references, strict=True):
        combined.add(prediction=prediction, reference=reference_)
    assert combined.compute() == at_once
    assert combined.compute(predictions=[0], references=[0])["accuracy"] == 1.0  # nothing is left


def test_metric_takes_names_and_tensors():
    import torch

    f1 = metrics.Metric("f1_weighted")
    assert f1.compute(predictions=torch.tensor([0, 1]), references=torch.tensor([0, 1])) == {"f1_weighted": 1.0}
    assert f1.compute(predictions=["no", "yes"], references=["no", "yes"]) == {"f1_weighted": 1.0}


def test_metric_writes_to_a_temporary_folder_only():
    import tempfile

    accuracy = metrics.Metric("accuracy")
    accuracy.add_batch(predictions=[0, 1], references=[0, 0])
    folder = Path(accuracy.data_dir)
    assert folder.is_relative_to(tempfile.gettempdir())
    assert not list(folder.iterdir())  # what was added is in memory
    assert accuracy.compute() == {"accuracy": 0.5}


def test_import_is_light():
    code = "import sys; from helpers import metrics; print({'torch', 'evaluate', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_rows_without_a_label_do_not_count():
    from types import SimpleNamespace

    logits = np.array([[2.0, 1.0], [0.5, 3.0], [2.0, 1.0]])
    evaluation = SimpleNamespace(predictions=logits, label_ids=np.array([0, -100, 1]))
    assert metrics.for_trainer("accuracy", "f1_macro")(evaluation) == pytest.approx(
        {"accuracy": 0.5, "f1_macro": 1 / 3}
    )


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["N", "V"], r'sentence 1: the tag "N" is of no entity.*O, B-X and I-X'),
        (["O", "U-PER"], 'the tag "U-PER" is of no entity'),
        ([1, 2], 'the tag "1" is of no entity'),
        (["b-per"], 'the tag "b-per" is of no entity'),
        (["B-"], 'the tag "B-" is of no entity'),
    ],
)
def test_tags_that_are_of_no_entity(tags, message):
    with pytest.raises(ValueError, match=message):
        metrics.score("entity_f1", [tags], [tags])


def test_tags_of_one_letter_are_entities_of_one_kind():
    assert metrics.score("entity_f1", [["B", "I", "O", "B"]], [["B", "I", "O", "O"]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_labels_are_named(missing):
    for place in (0, 1500):
        labels = [0, 1] * 1000
        labels[place] = missing
        with pytest.raises(ValueError, match="a row has a missing value where one class belongs"):
            metrics.score("f1_macro", labels, [0, 1] * 1000)


# ---- Errors ----


def compare_with_itself(metric, predictions, references):
    return metrics.compare(metric, predictions, predictions, references)


@pytest.mark.parametrize("call", [metrics.score, metrics.interval, compare_with_itself])
def test_errors_of_scores(call):
    with pytest.raises(ValueError, match="2 predictions but 3 references"):
        call("accuracy", [0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="nothing to score"):
        call("f1_macro", [], [])
    with pytest.raises(ValueError, match=r'unknown metric "acuracy" \(closest: accuracy\)'):
        call("acuracy", [0], [0])
    with pytest.raises(ValueError, match="predictions are numbers, references text"):
        call("accuracy", [0, 1], ["no", "yes"])
    with pytest.raises(ValueError, match=r"logits\.argmax"):
        call("accuracy", [0.3, 0.7], [0, 1])
    if call is not compare_with_itself:  # there it would be a list of seeds
        with pytest.raises(ValueError, match=r"a row has a list where one class belongs\. Pass logits\.argmax"):
            call("accuracy", np.array([[0.3, 0.7]]), np.array([1]))
    with pytest.raises(ValueError, match="sentence 2: 1 predicted tags but 2 reference tags"):
        call("entity_f1", [["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(ValueError, match="sentence 1: 'O' and 'O' are not two lists of tags"):
        call("entity_f1", ["O"], ["O"])


def test_errors_of_metric():
    accuracy = metrics.Metric("accuracy")
    for inputs, message in [
        ({"predictions": [0, 1], "references": [0]}, "2 predictions but 1 references"),
        ({"predictions": [], "references": []}, "nothing to score"),
        ({"predictions": [0.2, 0.9], "references": [0, 1]}, "fraction where one class"),
    ]:
        with pytest.raises(ValueError, match=message):
            accuracy.compute(**inputs)
    assert accuracy.compute(predictions=[0], references=[0]) == {"accuracy": 1.0}  # no error left a trace
    with pytest.raises(ValueError, match=r'unknown metric "acuracy" \(closest: accuracy\)'):
        metrics.Metric("acuracy")


def test_errors_of_intervals():
    with pytest.raises(ValueError, match="confidence lies between 0 and 1"):
        metrics.interval("accuracy", [0], [0], confidence=95)
    with pytest.raises(ValueError, match="n is at least 1"):
        metrics.compare("accuracy", [0], [0], [0], n=0)
    for values in ([0.8], [], [0.8, float("nan")]):
        with pytest.raises(ValueError, match="two or more finite numbers"):
            metrics.mean_interval(values)


# ---- Intervals ----


def test_interval_prints_and_formats():
    assert str(metrics.Interval(0.823, 0.791, 0.851)) == "0.82 [0.79, 0.85]"
    assert f"{metrics.Interval(0.823, 0.791, 0.851):.3f}" == "0.823 [0.791, 0.851]"


def test_interval_is_reproducible():
    predictions, references = RNG.integers(8, size=(2, 600))
    tags = random_tags(3, sentences=600)
    for name, inputs in [(n, (predictions, references)) for n in metrics.CLASS_METRICS] + [("entity_f1", tags)]:
        first = metrics.interval(name, *inputs)
        assert first == metrics.interval(name, *inputs)
        assert first.low < first.value < first.high
    assert metrics.interval("f1_macro", predictions, references, seed=1) != metrics.interval(
        "f1_macro", predictions, references
    )


def drawn_row_by_row(name, predictions, references, n=400):
    """The interval from rows that are drawn one by one."""
    rng = np.random.default_rng(7)
    scores = []
    for _ in range(n):
        rows = rng.integers(len(references), size=len(references))
        scores.append(metrics.score(name, [predictions[i] for i in rows], [references[i] for i in rows]))
    return np.quantile(scores, [0.025, 0.975])


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "recall_weighted", "entity_f1"])
def test_interval_agrees_with_drawing_rows(name):
    rng = np.random.default_rng(1)
    references = rng.integers(3, size=200)
    inputs = (np.where(rng.random(200) < 0.7, references, rng.integers(3, size=200)), references)
    inputs = random_tags(5, sentences=200) if name.startswith("entity") else inputs
    assert metrics.interval(name, *inputs, n=2000)[1:] == pytest.approx(drawn_row_by_row(name, *inputs), abs=0.02)


def test_interval_covers_the_truth():
    """Of 300 test sets from a model that is right 80% of the time, about 95% of the intervals hold 0.8."""
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(300):
        right = (rng.random(200) < 0.8).astype(int)
        found = metrics.interval("accuracy", right, np.ones(200, int), n=400, seed=seed)
        held += found.low <= 0.8 <= found.high
    assert 0.90 <= held / 300 <= 0.99


def test_mean_interval_is_student_t():
    from scipy import stats

    values = [0.81, 0.79, 0.84, 0.80]
    found = metrics.mean_interval(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found == pytest.approx((np.mean(values), *expected))
    assert metrics.mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


# ---- Two models on the same rows ----


def test_difference_prints():
    assert str(metrics.Difference(-3.04, -5.5, 0.04, 1, 75)) == "-3.0 points [-5.5, +0.0], 1 seed x 75 rows"
    assert str(metrics.Difference(3.04, 0.51, 5.49, 3, 600)) == "+3.0 points [+0.5, +5.5], 3 seeds x 600 rows"


def right(rng, share, rows):
    """Class ids of which this share is 1, which is right everywhere."""
    return (rng.random(rows) < share).astype(int)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "entity_f1", "bleu"])
def test_compare_by_hand(name):
    """The same as scoring both sides on rows and seeds that are drawn one by one."""
    rng = np.random.default_rng(0)
    tags = ["O", "B-PER", "B-LOC"]
    kind = {"entity_f1": lambda ids: [[tags[i]] for i in ids], "bleu": lambda ids: [f"a b c d e {i}" for i in ids]}
    shape = kind.get(name, list)
    references = shape(rng.integers(3, size=40))
    sides = [[shape(rng.integers(3, size=40)) for _ in range(2)] for _ in range(2)]
    points = 1 if name == "bleu" else 100

    def ahead(seeds, rows):
        def scores(side):
            return [metrics.score(name, [side[s][i] for i in rows], [references[i] for i in rows]) for s in seeds]

        return points * (np.mean(scores(sides[0])) - np.mean(scores(sides[1])))

    result = metrics.compare(name, *sides, references)
    assert result.points == pytest.approx(ahead(range(2), range(40)))
    drawn = [ahead(rng.integers(2, size=2), rng.integers(40, size=40)) for _ in range(60 if name == "bleu" else 250)]
    width = result.high - result.low
    assert result[1:3] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.2 * width)
    assert (result.seeds, result.rows) == (2, 40)
    assert metrics.compare(name, *sides[::-1], references).points == pytest.approx(-result.points)


def test_compare_known_cases():
    rng = np.random.default_rng(1)
    runs, references = [right(rng, 0.8, 50) for _ in range(3)], np.ones(50, int)
    assert metrics.compare("accuracy", runs, runs, references) == (0, 0, 0, 3, 50)
    assert metrics.compare("accuracy", runs[0], runs[0], references) == (0, 0, 0, 1, 50)
    assert metrics.compare("accuracy", references, 1 - references, references)[:3] == (100, 100, 100)
    # Both err on the same rows: nothing but the difference varies.
    worse = runs[0].copy()
    worse[np.flatnonzero(worse)[:1]] = 0
    assert metrics.compare("accuracy", runs[0], worse, references)[:2] == pytest.approx((2, 0))
    # Copies of a run are no more evidence than the run.
    once = metrics.compare("accuracy", runs[0], runs[1], references)
    assert metrics.compare("accuracy", [runs[0]] * 5, [runs[1]] * 5, references)[:3] == once[:3]
    # A baseline without a seed stands beside each seed.
    assert metrics.compare("accuracy", runs, runs[0], references) == metrics.compare(
        "accuracy", runs, [runs[0]] * 3, references
    )
    # Seeds that differ and rows that do not: from the lowest seed to the highest.
    seeds = [[1] * 50, [0] * 50, [1] * 50]
    assert metrics.compare("accuracy", seeds, [0] * 50, references)[1:3] == (0, 100)


def test_compare_is_the_paired_bootstrap_of_scipy_for_one_seed():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(2)
    one = right(rng, 0.8, 300)
    other = np.where(rng.random(300) < 0.8, one, right(rng, 0.6, 300))
    result = metrics.compare("accuracy", one, other, np.ones(300, int), n=5000)
    expected = bootstrap(
        (one, other),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=5000,
        rng=rng,
    ).confidence_interval
    assert result[1:3] == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.5)
    alone = [metrics.interval("accuracy", side, np.ones(300, int)) for side in (one, other)]
    assert result.high - result.low < 100 * sum(interval.high - interval.low for interval in alone) / 2


@pytest.mark.parametrize(("seeds", "sd_of_seeds"), [(1, 0.0), (3, 0.1), (6, 0.2)])
def test_compare_covers_the_truth(seeds, sd_of_seeds):
    """Rows are easy or hard for each side, seeds are better or worse: about 95 % of the intervals hold the truth."""
    from scipy.stats import norm

    rng, rows, held = np.random.default_rng(3), 200, 0
    spread = (sd_of_seeds**2 + 1 + 1 + 0.5**2) ** 0.5
    truth = 100 * (norm.cdf(1.1 / spread) - norm.cdf(0.8 / spread))
    for trial in range(150):
        hard = rng.normal(size=rows)  # for both
        sides = []
        for level in (1.1, 0.8):
            level = level + hard + rng.normal(size=rows)  # for this side
            noise = rng.normal(size=(seeds, rows)) * 0.5 + rng.normal(size=(seeds, 1)) * sd_of_seeds
            sides.append((level + noise > 0).astype(int))
        result = metrics.compare("accuracy", *sides, np.ones(rows, int), n=300, seed=trial)
        held += result.low <= truth <= result.high
    assert 0.90 <= held / 150 <= 0.99


def test_errors_of_compare():
    with pytest.raises(ValueError, match="2 seeds against 3: pass the same seeds, in the same order"):
        metrics.compare("accuracy", [[0], [0]], [[0], [0], [0]], [0])
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        metrics.compare("accuracy", [[0, 0], [0]], [[0, 0], [0, 0]], [0, 0])
    with pytest.raises(ValueError, match="nothing to score"):
        metrics.compare("bleu", [], [], [])
    with pytest.raises(ValueError, match="is one text"):
        metrics.compare("bleu", "a", "b", ["a"])


# ---- For the Trainer ----


def evaluation(predictions, labels):
    from transformers import EvalPrediction

    return EvalPrediction(predictions=predictions, label_ids=labels)


def test_for_trainer_takes_logits_tuples_and_ids():
    logits, labels = RNG.normal(size=(50, 3)), RNG.integers(3, size=50)
    compute = metrics.for_trainer()
    expected = {name: reference(name, logits.argmax(-1), labels) for name in ("accuracy", "f1_macro")}
    for predictions in (logits, (logits, "hidden states"), metrics.keep_argmax(logits, labels)):
        assert compute(evaluation(predictions, labels)) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r'unknown metric "f1" \(closest: f1_macro\)'):
        metrics.for_trainer("f1")
    with pytest.raises(ValueError, match="one column"):
        compute(evaluation(logits[:, :1], labels))


def test_for_tokens_skips_what_has_no_label():
    tags = ["O", "B-PER", "I-PER"]
    labels = np.array([[-100, 1, 2, -100, 0], [0, 1, -100, -100, -100]])
    logits = np.eye(3)[[[1, 1, 2, 2, 0], [0, 0, 1, 1, 1]]]
    expected = {"entity_precision": 1.0, "entity_recall": 0.5, "entity_f1": 2 / 3, "f1_PER": 2 / 3}
    for names in (tags, dict(enumerate(tags))):
        for predictions in (logits, metrics.keep_argmax((logits, None), labels)):
            assert metrics.for_tokens(names)(evaluation(predictions, labels)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="class id 2 has no name: names has 2"):
        metrics.for_tokens(tags[:2])(evaluation(logits, labels))


def test_for_trainer_in_a_trainer(tmp_path):
    import torch
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def forward(self, x, labels=None):
            return {"loss": x.sum() * 0, "logits": torch.stack([-x, x], -1), "extra": x}

    rows = [{"x": float(i - 3), "labels": int(i >= 2)} for i in range(6)]
    arguments = TrainingArguments(tmp_path, report_to=[], disable_tqdm=True, per_device_eval_batch_size=4, use_cpu=True)
    results = []
    for keep in (None, metrics.keep_argmax):
        trainer = Trainer(
            Model(),
            arguments,
            eval_dataset=rows,
            compute_metrics=metrics.for_trainer(),
            preprocess_logits_for_metrics=keep,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(trainer.evaluate())
    assert results[0]["eval_accuracy"] == results[1]["eval_accuracy"] == pytest.approx(4 / 6)
