"""What a project says of its own result: scores and intervals, baselines, what looks wrong, and the report."""

import math
import random
import re
import unicodedata

import numpy as np
import pytest
from datasets import Dataset
from new_projects import load
from sacrebleu.metrics import BLEU
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import f1_score

from helpers import metrics, new

TRAINING = {"learning_rate": 1e-4, "num_train_epochs": 3}


@pytest.fixture(scope="module")
def scoring():
    """scoring.py of each task."""
    return {task: load(new.TEMPLATES / task, "scoring") for task in new.KINDS}


@pytest.fixture(scope="module")
def verdict():
    return load(new.TEMPLATES / "classification", "verdict")


def config(**data):
    return {"data": {"max_length": 64, **data}, "training": dict(TRAINING)}


# ---- Scores and intervals ------------------------------------------------------------------------------------------


def test_the_lead_is_paired(verdict):
    """Two systems that are right on the same rows but one have a narrow interval, though each alone has a wide one."""
    right = np.random.default_rng(0).random(200) < 0.5
    other = right.copy()
    other[np.flatnonzero(right)[0]] = False
    made = {name: np.stack([one, np.ones(200)], 1).astype(float) for name, one in (("ours", right), ("other", other))}
    compared = verdict.compare(made, verdict.ratio)
    assert compared["ours"]["score"] == pytest.approx(right.mean())
    assert compared["ours"]["low"] < right.mean() - 0.05 < right.mean() + 0.05 < compared["ours"]["high"]
    assert compared["other"]["lead"] == pytest.approx(1 / 200)
    assert 0 <= compared["other"]["lead_low"] <= 1 / 200 <= compared["other"]["lead_high"] < 0.02


def test_the_interval_is_that_of_the_formula(verdict):
    right = (np.arange(400) < 300).astype(float)
    found = verdict.compare({"ours": np.stack([right, np.ones(400)], 1)}, verdict.ratio)["ours"]
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert [found["low"], found["high"]] == pytest.approx([0.75 - half, 0.75 + half], abs=0.008)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_the_statistics_of_classes_make_the_score(metric, scoring):
    draw, classes = np.random.default_rng(1), config(labels=["a", "b", "c", "never"])
    classes["training"]["metric_for_best_model"] = metric
    said, true = draw.integers(0, 3, 60), draw.integers(0, 3, 60)
    made, score = scoring["classification"].statistics(said, true, classes)
    found = float(score(np.asarray(made.sum(0)).ravel()))
    assert found == pytest.approx(scoring["classification"].scores(said, true, classes)[metric])


def test_the_statistics_of_several_labels_make_the_score(scoring):
    several = config(labels=["a", "b", "c"], multi_label=True)
    references = scoring["classification"].numbers([["a"], ["a", "c"], []], several)
    assert references.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
    said = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    made, score = scoring["classification"].statistics(said, references, several)
    wanted = f1_score(references, said, average="micro")
    assert float(score(made.sum(0))) == pytest.approx(wanted) == pytest.approx(4 / 6)


def test_the_statistics_of_entities_make_the_score(scoring):
    draw, tags = random.Random(0), ["O", "B-X", "I-X", "B-Y", "I-Y"]
    said, true = ([[draw.choice(tags) for _ in range(9)] for _ in range(30)] for _ in range(2))
    made, score = scoring["tokens"].statistics(said, true)
    assert float(score(made.sum(0))) == pytest.approx(entity_f1(true, said))


def test_bleu_is_that_of_sacrebleu(scoring):
    draw = random.Random(0)
    true = [" ".join(draw.choice("abcd") for _ in range(12)) for _ in range(20)]
    said = [" ".join(word if draw.random() < 0.8 else "x" for word in one.split()) for one in true]
    made, score = scoring["generation"].bleu_statistics(said, true)
    wanted = BLEU(tokenize="none", smooth_method="none").corpus_score(said, [true]).score
    assert 100 * float(score(made.sum(0))) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("text", ["यह अच्छा है", "这 本 书 很 好", "这本书很好", "هذا كتاب جيد", "Это хорошо", "größer"])
def test_equal_answers_in_any_script_are_right(text, scoring):
    assert scoring["generation"].scores([text], [text])["rougeL"] == 1
    assert scoring["generation"].rouge(["grosser"], ["größer"])[0] == 0
    assert scoring["generation"].rouge([unicodedata.normalize("NFD", text)], [text])[0] == 1
    said, true = ["की", "สวัสดา", text], ["का", "สวัสดี", f"{text} {text}"]  # a vowel is a part of its letter
    said, true = [*said, "No, it's 3.5 👍!", "...", "a_b", "ខ្មែរ"], [*true, "no it is 3 5 👍", "...", "a b", "ខ្មែ"]
    wanted = [metrics.score("rougeL", [one], [other]) for one, other in zip(said, true, strict=True)]
    assert scoring["generation"].rouge(said, true).tolist() == pytest.approx(wanted)


# ---- Baselines -----------------------------------------------------------------------------------------------------


def reviews(count, seed=0, noise=0.0):
    draw, rows = random.Random(seed), []
    for n in range(count):
        label = draw.choice(["good", "bad"])
        word = {"good": ["fine", "lovely"], "bad": ["poor", "awful"]}[label if draw.random() >= noise else "good"]
        rows.append({"text": f"The {draw.choice(['lamp', 'lid'])} is {draw.choice(word)}, number {n}.", "label": label})
    return Dataset.from_list(rows)


def test_word_counts_and_the_most_frequent_class(scoring):
    rows = {"train": reviews(80), "validation": reviews(20, 1), "test": reviews(20, 2)}
    classes = config(labels=["bad", "good"])
    always, words = scoring["classification"].baselines(rows, classes).values()
    assert (words["test"] == scoring["classification"].numbers(rows["test"]["label"], classes)).all()
    assert len(set(always["test"])) == 1


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_labels_that_the_texts_do_not_show_are_seen(noise, scoring):
    rows = {"train": reviews(300, noise=noise)}
    assert scoring["classification"].can_be_read(rows, config(labels=["bad", "good"])) == (noise == 0)


@pytest.mark.parametrize("text", ["! ?", "The same."])
def test_texts_without_a_word_have_no_word_counts(text, scoring):
    rows = [{"text": text, "label": "ab"[n % 2]} for n in range(10)]
    rows = dict.fromkeys(("train", "validation", "test"), Dataset.from_list(rows))
    found = scoring["classification"].baselines(rows, config(labels=["a", "b"]))
    assert next(iter(found)) == 'always "a"'
    assert len(found) == 1 + (text != "! ?")


def test_the_word_list_knows_each_words_usual_tag(scoring):
    rows = [{"tokens": ["Ada", "May", "slept"], "tags": ["B-P", tag, "O"]} for tag in ("O", "B-P", "O")]
    other = [{"tokens": ["May", "Ada", "unseen"], "tags": ["O", "B-P", "O"]}]
    parts = {"train": rows, "validation": other, "test": other}
    found = scoring["tokens"].baselines({part: Dataset.from_list(one) for part, one in parts.items()}, config())
    assert found["word list"]["test"] == [["O", "B-P", "O"]]
    assert found["no entity"]["test"] == [["O", "O", "O"]]


# ---- What looks wrong ----------------------------------------------------------------------------------------------


def curve(losses, scores, first=1.0, last=0.2):
    logged = [{"loss": first, "epoch": 0.1}, {"loss": last, "epoch": len(losses)}]
    both = zip(losses, scores, strict=True)
    return logged + [{"eval_loss": a, "eval_accuracy": b, "epoch": n} for n, (a, b) in enumerate(both, 1)]


CURVES = [
    (curve([0.6, 0.4, 0.39], [0.7, 0.8, 0.80]), None),
    (curve([0.5, 0.3, 0.4], [0.8, 0.9, 0.91]), None),
    (curve([0.1, 0.0, 0.0], [1.0, 1.0, 1.0]), None),
    (curve([4.0, 3.5, 3.2], [0.1, 0.3, 0.5]), "still fell .* raise training.num_train_epochs: 3"),
    (curve([0.5, 0.6, 1.2], [0.8, 0.8, 0.79]), "It overfits: after evaluation 1 of 3 .* from 0.50 to 1.20"),
    (
        curve([0.7, 0.69, 0.69], [0.4, 0.4, 0.4]),
        "All 3 evaluations score the same, .* `python train.py --find` .* training.learning_rate: 0.0001",
    ),
    (curve([0.7], [0.4], last=math.nan), "not a number any more: lower training.learning_rate: 0.0001"),
    (curve([0.7], [0.4], last=3.0), "rose from 1.00 to 3.00: lower training.learning_rate: 0.0001"),
]


@pytest.mark.parametrize(("history", "said"), CURVES)
def test_what_a_curve_shows(history, said, verdict):
    found = verdict.of_the_curve(config(), history, "accuracy", 1000)
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])


def both_parts(**numbers):
    one = {"this model": {"score": 0.6, "low": 0.5, "high": 0.7}}
    for name, (score, low, high) in numbers.items():
        lead = {"lead": 0.6 - score, "lead_low": 0.6 - high, "lead_high": 0.6 - low}
        one[name] = {"score": score, "low": low, "high": high, **lead}
    return {"validation": one, "test": one}


def test_what_is_below_a_baseline_is_said(verdict):
    said = verdict.of_the_baselines(config(), both_parts(words=(0.7, 0.6, 0.8)), "accuracy", {"always"})
    assert "words (0.600 against 0.700 on the validation rows and 0.600 against 0.700 on the test rows)" in said[0]
    assert "training.learning_rate: 0.0001" in said[0]
    said = verdict.of_the_baselines(config(), both_parts(always=(0.58, 0.4, 0.8)), "accuracy", {"always"})
    assert "not shown to be above a baseline: always" in said[0]
    assert not verdict.of_the_baselines(config(), both_parts(always=(0.3, 0.25, 0.35)), "accuracy", {"always"})


ADVICE = [
    ([0.69, 0.68], "raise training.learning_rate"),
    ([0.69, 0.66, 0.64, 0.60, 0.55, 0.50], "raise training.learning_rate"),
    ([9.0, 0.7], "lower training.learning_rate"),
    ([math.nan], "lower training.learning_rate"),
    (
        [0.69, 0.21, 0.20, 0.24, 0.25, 0.24],
        r"its training loss stood still at 0.24, so training.learning_rate: 0.0001 is too high or too low; ",
    ),
]


@pytest.mark.parametrize(("losses", "said"), ADVICE)
def test_a_rate_that_is_too_high_is_not_raised(losses, said, verdict):
    assert re.match(said, verdict.more_or_less(config(), [{"loss": loss} for loss in losses], 2))


def test_a_test_of_another_kind_is_said(verdict):
    far = {
        part: {"this model": {"score": s, "low": s - 0.03, "high": s + 0.03}}
        for part, s in (("validation", 0.9), ("test", 0.7))
    }
    assert "data.test is of another kind" in verdict.of_the_parts(far)[0]
    far["test"]["this model"] |= {"score": 0.87}
    assert not verdict.of_the_parts(far)


def test_rows_that_are_cut_are_said(verdict):
    assert not verdict.of_the_cut(config(), 4, 100, 512, "data.stride: 32")
    [said] = verdict.of_the_cut(config(), 40, 100, 512, "data.stride: 32")
    assert (
        "(40%) are longer than data.max_length: raise data.max_length: 64, up to 512, or set data.stride: 32." in said
    )


def results(scoring, rows, said, classes):
    """As train.py makes them, for a model that says this on both parts."""
    simple, made = (
        scoring.baselines(rows, classes),
        {"metric": "accuracy", "baselines": {}, "predictions": {}, "references": {}},
    )
    made |= {"probabilities": {}, "history": curve([0.6, 0.5], [0.7, 0.8])}
    for part in ("validation", "test"):
        made["references"][part] = scoring.numbers(rows[part]["label"], classes)
        made["predictions"][part] = scoring.numbers(said(rows[part]), classes)
        made["probabilities"][part] = 0.1 + 0.8 * np.eye(len(classes["data"]["labels"]))[made["predictions"][part]]
        systems = {"this model": made["predictions"][part], **{name: one[part] for name, one in simple.items()}}
        numbers = {n: scoring.statistics(one, made["references"][part], classes) for n, one in systems.items()}
        score = numbers["this model"][1]
        made["baselines"][part] = scoring.verdict.compare({n: one for n, (one, _) in numbers.items()}, score)
    return made


@pytest.mark.parametrize(
    ("said", "noise", "message"),
    [
        (lambda rows: rows["label"], 0.0, None),
        (lambda rows: ["good"] * len(rows), 0.0, "It gives every validation row the label 'good': raise training"),
        (lambda rows: (["good", "bad"] * len(rows))[: len(rows)], 1.0, "The labels look unrelated to the texts"),
    ],
)
def test_what_predictions_show(said, noise, message, scoring):
    rows = {
        part: reviews(n, seed, noise) for part, n, seed in (("train", 300, 0), ("validation", 60, 1), ("test", 60, 2))
    }
    classes = config(labels=["bad", "good"])
    found = scoring["classification"].warnings(results(scoring["classification"], rows, said, classes), rows, classes)
    assert [one for one in found if not one.startswith(message or "-")] == []
    assert len(found) == (message is not None)


def test_a_label_that_training_never_saw_is_said(scoring):
    rows = {part: reviews(n, n) for part, n in (("train", 200), ("validation", 40), ("test", 41))}
    rows["test"] = Dataset.from_list([{"text": "New.", "label": "odd"}, *rows["test"]])
    classes = config(labels=["bad", "good", "odd"])
    made = results(
        scoring["classification"], rows, lambda part: [one if one != "odd" else "bad" for one in part["label"]], classes
    )
    found = scoring["classification"].warnings(made, rows, classes)
    assert found == ["data.test has labels that no row to train on has, so none is found: odd."]


# ---- The report ----------------------------------------------------------------------------------------------------


def test_the_report_is_one_file_that_needs_nothing_else(scoring, tmp_path):
    rows = {part: reviews(n, seed, 0.3) for part, n, seed in (("train", 99, 0), ("validation", 60, 1), ("test", 60, 2))}
    rows["validation"] = Dataset.from_list(
        [{"text": "<script>alert('&')</script>", "label": "good"}, *rows["validation"]]
    )
    classes, module = config(labels=["bad", "good"]), scoring["classification"]
    made = results(module, rows, lambda part: ["good" if "fine" in text else "bad" for text in part["text"]], classes)
    record = {
        **made, "settings": classes, "seconds": 3.0, "rows": {part: len(one) for part, one in rows.items()},
        "machine": {"device_name": "cpu", "python": "3.11", "system": "Linux"}, "versions": {"torch": "2.13.0"},
        "curve": curve([0.6, 0.4], [0.7, 0.8]), "warnings": ["Something <b> looks wrong."],
    }  # fmt: skip
    module.report.write(tmp_path / "report.html", "mine", record, module.sections(made, rows, classes))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|src=|href=|https?:|@import|url\(", page)
    assert "&lt;script&gt;alert" in page
    assert "Something &lt;b&gt; looks wrong." in page
    score = made["baselines"]["test"]["this model"]["score"]
    assert f"mine: accuracy {score:.3f} on 60 test rows" in page
    for title in (
        "Scores",
        "Training",
        "What is taken for what",
        "The surest mistakes",
        "How far to trust",
        "Settings",
    ):
        assert f"<h2>{title}" in page


@pytest.mark.parametrize(("list_f1", "said"), [(0.25, "word list"), (0.05, None)])
def test_tags_that_are_not_above_a_list_of_words_are_said(list_f1, said, scoring):
    """Random tags: some are right by chance, as often by the list as by the model."""
    tags = [["B-P", "O", "O", "O"], ["O", "O", "B-P", "O"]] * 20
    rows = Dataset.from_list([{"tokens": ["Ada", "and", "Ada", "ran"], "tags": one} for one in tags])
    parts = dict.fromkeys(("train", "validation", "test"), rows)
    ahead = {"low": 0.2, "high": 0.34, "score": list_f1, "lead": 0.27 - list_f1}
    one = {
        "this model": {"score": 0.27, "low": 0.2, "high": 0.34},
        "no entity": {"score": 0.0, "low": 0.0, "high": 0.0, "lead": 0.27, "lead_low": 0.2, "lead_high": 0.34},
        "word list": ahead | {"lead_low": 0.27 - list_f1 - 0.07, "lead_high": 0.27 - list_f1 + 0.07},
    }
    results = {"baselines": {"validation": one, "test": one}, "history": [], "metric": "f1"}
    results["predictions"] = results["references"] = {"validation": tags, "test": tags}
    found = scoring["tokens"].warnings(results, parts, config(labels=["O", "B-P"]))
    assert (found == []) == (said is None)
    assert said is None or said in found[0]


@pytest.mark.parametrize(("right", "said"), [(30, False), (6, True)])
def test_tags_that_no_order_makes_worse_are_said(right, said, scoring):
    """Forty rows of five words with one entity: as often right as by chance, or much more often."""
    true = [["O"] * i + ["B-P"] + ["O"] * (4 - i) for i in [0, 1, 2, 3, 4] * 8]
    predicted = [tags if number < right else [*tags[1:], tags[0]] for number, tags in enumerate(true)]
    rows = Dataset.from_list([{"tokens": ["a"] * 5, "tags": tags} for tags in true])
    parts = dict.fromkeys(("train", "validation", "test"), rows)
    kinds = scoring["tokens"].baselines(parts, config())
    results = {"baselines": {}, "history": [], "metric": "f1", "predictions": {}, "references": {}}
    for part in ("validation", "test"):
        systems = {"this model": predicted, **{name: one[part] for name, one in kinds.items()}}
        made = {name: scoring["tokens"].statistics(one, true)[0] for name, one in systems.items()}
        results["baselines"][part] = scoring["tokens"].verdict.compare(made, scoring["tokens"].verdict.ratio)
        results["predictions"][part], results["references"][part] = predicted, true
    found = scoring["tokens"].warnings(results, parts, config(labels=["O", "B-P"]))
    assert any("in a random order score as well" in one for one in found) == said


@pytest.mark.parametrize(("moved", "said"), [(0, None), (1, "the word before"), (-1, "the word after")])
def test_tags_that_fit_the_next_word_are_said(moved, said, scoring):
    names, rest = ["Ada", "Bob", "Cleo", "Dan"], ["saw", "the", "old", "house", "near", "us"]
    draw, lines = random.Random(0), []
    for _ in range(120):
        words = draw.sample(rest, 5)
        place = draw.randrange(1, 4)
        words[place] = draw.choice(names)
        lines.append({"tokens": words, "tags": ["B-P" if i == place + moved else "O" for i in range(5)]})
    parts = {
        name: Dataset.from_list(lines[i * 40 : i * 40 + 40]) for i, name in enumerate(("train", "validation", "test"))
    }
    results = {"references": {part: parts[part]["tags"][:] for part in ("validation", "test")}}
    found = scoring["tokens"].of_the_neighbours(results, parts)
    assert bool(found) == bool(said)
    assert not said or said in found[0]


def test_few_rows_are_said(verdict):
    assert verdict.of_few_rows({"train": 12, "validation": 20, "test": 200}) == []
    [said] = verdict.of_few_rows({"train": 12, "validation": 6, "test": 19})
    assert said.startswith("data.validation has 6 and data.test has 19 rows")


def test_a_run_whose_loss_is_no_number_has_a_report(scoring):
    history = [{"epoch": 1, "loss": math.nan, "eval_loss": math.nan, "eval_f1": 0.1}, {"epoch": 2, "loss": math.nan}]
    pictures = scoring["tokens"].report.curves(history, "f1")
    assert pictures.count("<svg") == 1  # of the score; the losses have no point to draw
    assert "nan" not in pictures
