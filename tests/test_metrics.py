"""`metrics` gives the numbers of scikit-learn and seqeval, its intervals cover, its errors are clear."""

import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from helpers import metrics

ROOT = Path(metrics.__file__).parents[1]
RNG = np.random.default_rng(0)
MODULES = (metrics.Precision, metrics.Recall, metrics.F1)


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
        assert metrics.EntityF1().compute(predictions=predictions, references=references)[name] == pytest.approx(
            expected
        )


def test_modules_equal_scikit_learn():
    for seed in range(5):
        predictions, references = random_classes(seed)
        for module in (metrics.Accuracy(), *(kind(average=a) for kind in MODULES for a in ("macro", "weighted"))):
            ((key, value),) = module.compute(predictions=predictions, references=references).items()
            assert value == pytest.approx(reference(key, predictions, references), abs=1e-12)
            assert type(value) is float


def test_per_class_with_and_without_names():
    inputs = {"predictions": [0, 2, 2], "references": [0, 0, 2]}
    assert metrics.Recall(average=None).compute(**inputs) == {"recall_0": 0.5, "recall_2": 1.0}
    named = metrics.Recall(average=None, names=["no", "maybe", "yes"]).compute(**inputs)
    assert named == {"recall_no": 0.5, "recall_maybe": 0.0, "recall_yes": 1.0}
    words = {key: ["no" if i == 0 else "yes" for i in side] for key, side in inputs.items()}
    assert metrics.Recall(average=None).compute(**words) == {"recall_no": 0.5, "recall_yes": 1.0}


def test_entities_by_type_and_none_at_all():
    scores = metrics.EntityF1().compute(
        predictions=[["B-PER", "I-PER", "O"], ["B-LOC"]], references=[["B-PER", "I-PER", "O"], ["B-PER"]]
    )
    assert scores == pytest.approx(
        {"entity_precision": 0.5, "entity_recall": 0.5, "entity_f1": 0.5, "f1_LOC": 0, "f1_PER": 2 / 3}
    )
    assert metrics.EntityF1().compute(predictions=[["O"]], references=[["O"]])["entity_f1"] == 0.0


def test_modules_are_evaluate_metrics_and_combine():
    import evaluate

    modules = [metrics.Accuracy(), *(kind(average=a) for kind in MODULES for a in ("macro", "weighted", None))]
    assert all(isinstance(module, evaluate.Metric) for module in modules)
    combined = evaluate.combine(modules)
    predictions, references = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    at_once = combined.compute(predictions=predictions, references=references)
    assert set(metrics.CLASS_METRICS) < set(at_once)
    assert len(at_once) == len(metrics.CLASS_METRICS) + 6  # no two results share a name
    for i in range(2):
        combined.add_batch(predictions=predictions[2 * i :][:2], references=references[2 * i :][:2])
    assert combined.compute() == at_once
    for prediction, reference_ in zip(predictions, references, strict=True):
        combined.add(prediction=prediction, reference=reference_)
    assert combined.compute() == at_once
    assert (
        combined.compute(predictions=predictions[:1], references=references[:1])["accuracy"] == 1.0
    )  # nothing is left


def test_modules_take_tensors_and_pickle():
    import torch

    f1 = pickle.loads(pickle.dumps(metrics.F1(average="weighted")))
    assert f1.compute(predictions=torch.tensor([0, 1]), references=torch.tensor([0, 1])) == {"f1_weighted": 1.0}


def test_modules_write_to_a_temporary_folder_only():
    import tempfile

    accuracy = metrics.Accuracy()
    accuracy.add_batch(predictions=[0, 1], references=[0, 0])
    folder = Path(accuracy.data_dir)
    assert folder.is_relative_to(tempfile.gettempdir())
    assert not list(folder.iterdir())  # what was added is in memory
    assert accuracy.compute() == {"accuracy": 0.5}


def test_import_is_light():
    code = "import sys; from helpers import metrics; print({'torch', 'evaluate', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'Acuracy'"):
        metrics.Acuracy  # noqa: B018


# ---- Errors ----


@pytest.mark.parametrize("call", [metrics.score, metrics.interval])
def test_errors_of_score_and_interval(call):
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
    with pytest.raises(ValueError, match=r"logits\.argmax"):
        call("accuracy", np.array([[0.3, 0.7]]), np.array([1]))
    with pytest.raises(ValueError, match="sentence 2: 1 predicted tags but 2 reference tags"):
        call("entity_f1", [["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(ValueError, match="sentence 1: found text where a list of tags belongs"):
        call("entity_f1", ["O"], ["O"])


def test_errors_of_modules():
    accuracy = metrics.Accuracy()
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        accuracy.compute(predictions=[0, 1], references=[0])
    with pytest.raises(ValueError, match="nothing to score"):
        accuracy.compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="nothing to score"):
        accuracy.compute()
    with pytest.raises(ValueError, match="fractions"):
        accuracy.compute(predictions=[0.2, 0.9], references=[0, 1])
    assert accuracy.compute(predictions=[0], references=[0]) == {"accuracy": 1.0}  # no error left a trace
    with pytest.raises(ValueError, match="average='binary' is not one of"):
        metrics.F1(average="binary")


def test_errors_of_intervals():
    with pytest.raises(ValueError, match="confidence lies between 0 and 1"):
        metrics.interval("accuracy", [0], [0], confidence=95)
    for values in ([0.8], [], [0.8, float("nan")]):
        with pytest.raises(ValueError, match="two or more finite numbers"):
            metrics.mean_interval(values)


# ---- Intervals ----


def test_interval_prints_and_formats():
    assert str(metrics.Interval(0.823, 0.791, 0.851)) == "0.82 [0.79, 0.85]"
    assert f"{metrics.Interval(0.823, 0.791, 0.851):.3f}" == "0.823 [0.791, 0.851]"


def test_interval_is_reproducible_and_fast():
    predictions, references = RNG.integers(8, size=(2, 600))
    tags = random_tags(3, sentences=600)
    for name, inputs in [(n, (predictions, references)) for n in metrics.CLASS_METRICS] + [("entity_f1", tags)]:
        metrics.interval(name, *inputs, n=1)  # imports
        start = time.process_time()
        first = metrics.interval(name, *inputs)
        assert time.process_time() - start < 1
        assert first == metrics.interval(name, *inputs)
        assert first.low < first.value < first.high
    assert metrics.interval("f1_macro", predictions, references, seed=1) != metrics.interval(
        "f1_macro", predictions, references
    )


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "recall_weighted", "entity_f1"])
def test_fast_path_agrees_with_drawing_rows(name):
    rng = np.random.default_rng(1)
    references = rng.integers(3, size=200)
    inputs = (np.where(rng.random(200) < 0.7, references, rng.integers(3, size=200)), references)
    inputs = random_tags(5, sentences=200) if name.startswith("entity") else inputs
    fast = metrics.interval(name, *inputs, n=2000)
    slow = metrics.interval(lambda p, r: metrics.score(name, p, r), *inputs, n=400)
    assert fast.value == slow.value
    assert fast[1:] == pytest.approx(slow[1:], abs=0.02)


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
