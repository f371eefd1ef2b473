"""Scores of texts are the reference libraries' numbers, their intervals resample rows, losses count tokens."""

import socket
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from helpers import metrics

ROOT = Path(metrics.__file__).parents[1]
ROUGE = ("rouge1", "rouge2", "rougeL")
TEXT = "the The a an red door. doors, It's its U.S. us state-of-the-art café 42 - … « Ünïcode ! thé 門 don't"
WORDS = TEXT.split()
ASCII = [word for word in WORDS if word.isascii()]  # all that rouge_score reads


def random_texts(seed, rows=None, several=False, words=ASCII):
    """Predictions that share much with their references; some texts empty, some with lines and stray spaces."""
    rng = np.random.default_rng(seed)

    def text(near=()):
        near = [word for word in near if rng.random() < 0.8]
        chosen = [*near, *rng.choice(words, size=rng.integers(0, 7))]
        return str(rng.choice([" ", "  ", "\n", " "])).join(chosen)

    references = [text() for _ in range(rows or rng.integers(1, 20))]
    predictions = [one if rng.random() < 0.2 else text(one.split()) for one in references]
    if several:
        references = [[one, *(text(one.split()) for _ in range(rng.integers(0, 3)))] for one in references]
    return predictions, references


def squad_words(text):
    """Own reading of the SQuAD v1.1 script, character by character, with no regular expression."""
    text = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    pieces = [""]
    for c in text:  # a word ends where letters, digits and underscores end
        inside, before = c.isalnum() or c == "_", pieces[-1][-1:].isalnum() or pieces[-1][-1:] == "_"
        pieces.append(c) if inside != before else pieces.__setitem__(-1, pieces[-1] + c)
    return "".join(" " if piece in ("a", "an", "the") else piece for piece in pieces).split()


def squad_f1(found, wanted):
    found, wanted = squad_words(found), squad_words(wanted)
    left, shared = list(wanted), 0
    for word in found:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def plain_score(name, predictions, references):
    """The reference library's number, or our own naive one."""
    references = [[one] if isinstance(one, str) else one for one in references]
    if name in ("bleu", "chrf"):
        streams = [list(stream) for stream in zip_longest(*references)]
        return getattr(sacrebleu, f"corpus_{name}")(predictions, streams).score
    pairs = list(zip(predictions, references, strict=True))
    if name in ROUGE:
        scorer = RougeScorer([name], use_stemmer=False)
        return np.mean([scorer.score_multi(several, found)[name].fmeasure for found, several in pairs])
    one = {"exact_match": lambda f, w: squad_words(f) == squad_words(w), "token_f1": squad_f1}[name]
    return np.mean([max(one(found, wanted) for wanted in several) for found, several in pairs])


# ---- Scores ----


@pytest.mark.parametrize("several", [False, True], ids=["one reference", "several"])
@pytest.mark.parametrize("name", metrics.TEXT_METRICS)
def test_text_scores_equal_the_reference(name, several):
    values = set()
    for seed in range(50):
        inputs = random_texts(seed, several=several, words=ASCII if name in ROUGE else WORDS)
        values.add(metrics.score(name, *inputs))
        assert metrics.score(name, *inputs) == pytest.approx(plain_score(name, *inputs), abs=1e-12)
    assert len(values) > 15  # the texts are not all alike


@pytest.mark.parametrize(
    ("found", "wanted", "exact", "f1"),
    [
        ("The Red  Door!", "red door", 1, 1),
        ("the, a. an!", "", 1, 0),  # punctuation goes first, so these are articles; no words on both sides: F1 is 0
        ("theatre", "tre", 0, 0),  # an article is a whole word
        ("U.S.A.", "usa", 1, 1),
        ("state-of-the-art", "state of art", 0, 0),  # a hyphen goes without leaving a space
        ("a red door", "the red doors", 0, 0.5),
        ("red red door", "red door door", 0, 2 / 3),  # a word counts as often as it is in both
        ("“red”", "red", 0, 0),  # only ASCII punctuation goes
        ("thé", "the", 0, 0),
        ("", "red", 0, 0),
        ("\tred\n door ", "door red", 0, 1),
        ("in 1990", ["1990", "In 1990.", "nineteen"], 1, 1),
        ("in the year 1990", ["1990", "in 1990"], 0, 0.8),  # the best reference counts
    ],
)
def test_squad_scores_by_hand(found, wanted, exact, f1):
    assert metrics.score("exact_match", [found], [wanted]) == exact
    assert metrics.score("token_f1", [found], [wanted]) == pytest.approx(f1)


def test_texts_may_come_as_columns():
    from datasets import Dataset

    columns = Dataset.from_dict({"said": ["red", "blue"], "wanted": ["red", "green"]})
    for said, wanted in [
        (columns["said"], columns["wanted"]),
        (np.array(["red", "blue"]), ("red", "green")),
        (iter(["red", "blue"]), [("red",), np.array(["green", "grey"])]),
    ]:
        assert metrics.score("exact_match", said, wanted) == 0.5


def test_scores_run_from_0_to_1_or_to_100():
    texts = ["red door in the wall", "blue boat on the sea"]
    top = {name: metrics.score(name, texts, texts) for name in metrics.TEXT_METRICS}
    assert top == pytest.approx({name: 100 if name in metrics.CORPUS_METRICS else 1 for name in metrics.TEXT_METRICS})


SCRIPTS = """पूरी बत्ती लाल है; 今天天气很好; 東京タワーは高い; المصباح أحمر; Лампа красная; 한국어 문장; อากาศดีมาก
    می\u200cخواهم; Die Größe läßt zu wünschen übrig; ἡ λυχνία; הנורה אדומה; ሰላም ለዓለም; விளக்கு சிவப்பு; 👍🏽 😀
    naïve façade""".replace("\n", ";").split(";")
SPLIT_SCORES = ("exact_match", "token_f1", *ROUGE[:1], "rougeL")


@pytest.mark.parametrize("written", SCRIPTS)
def test_texts_in_any_script(written):
    import unicodedata

    other = "".join(chr(ord(c) + 1) if c.isalpha() else c for c in written).replace("👍🏽 😀", "🙁 🙂")
    for name in SPLIT_SCORES:
        assert metrics.score(name, [written], [written]) == 1
        for form in ("NFC", "NFD"):
            assert metrics.score(name, [unicodedata.normalize(form, written)], [written]) == 1
        assert metrics.score(name, [other], [written]) < 1, other


@pytest.mark.parametrize(
    ("found", "wanted", "exact", "f1", "rouge"),
    [
        ("今天天气很好", "今天天气不好", 0, 5 / 6, 5 / 6),  # a letter is a word where there are no blanks
        ("今天天气很好。", "今天天气很好", 1, 1, 1),
        ("बत्ती लाल है।", "बत्ती लाल है", 1, 1, 1),
        ("बत्ती नीली है", "बत्ती लाल है", 0, 2 / 3, 2 / 3),  # a sign that belongs to a letter does not end a word
        ("أين المصباح؟", "أين المصباح", 1, 1, 1),
        ("GPT模型很好", "gpt模型很好", 1, 1, 1),
        ("Grüße aus Köln", "Größe aus Koln", 0, 1 / 3, 1 / 3),
        ("красная лампа", "лампа красная", 0, 1, 1),
    ],
)
def test_scores_in_other_scripts_by_hand(found, wanted, exact, f1, rouge):
    scores = [metrics.score(name, [found], [wanted]) for name in ("exact_match", "token_f1", "rouge1")]
    assert scores == pytest.approx([exact, f1, rouge])


# ---- Metric ----


def test_text_metrics_equal_score_and_combine():
    import evaluate

    combined = evaluate.combine([metrics.Metric(name) for name in metrics.TEXT_METRICS])
    for several in (False, True):
        predictions, references = random_texts(5, rows=4, several=several)
        expected = {name: metrics.score(name, predictions, references) for name in metrics.TEXT_METRICS}
        at_once = combined.compute(predictions=predictions, references=references)
        assert at_once == pytest.approx(expected)
        assert all(type(value) is float for value in at_once.values())
        for i in (0, 2):
            combined.add_batch(predictions=predictions[i : i + 2], references=references[i : i + 2])
        assert combined.compute() == at_once
        for prediction, reference in zip(predictions, references, strict=True):
            combined.add(prediction=prediction, reference=reference)
        assert combined.compute() == at_once


def test_text_metrics_take_one_and_several_references_side_by_side():
    exact = metrics.Metric("exact_match")
    exact.add(prediction="red", reference="red")
    exact.add_batch(predictions=["blue", "grey"], references=[["green", "blue"], "black"])
    assert exact.compute() == {"exact_match": pytest.approx(2 / 3)}


def test_text_metrics_check_what_they_are_given():
    exact = metrics.Metric("exact_match")
    for inputs, message in [
        ({"predictions": ["a"]}, "1 predictions but 0 references"),
        ({"predictions": [3], "references": ["a"]}, "row 1: the prediction is 3, not text"),
    ]:
        with pytest.raises(ValueError, match=message):
            exact.compute(**inputs)
    assert exact.compute(predictions=["a b"], references=["b"]) == {"exact_match": 1.0}  # no error left a trace


def test_metrics_open_no_connection(monkeypatch):
    connections = []
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: connections.append(arguments))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: connections.append(arguments))
    for name in metrics.TEXT_METRICS:
        metrics.Metric(name).compute(predictions=["a red door"], references=["a red boat"])
    assert connections == []


def test_import_is_light():
    heavy = "{'torch', 'evaluate', 'nltk', 'rouge_score', 'sacrebleu', 'transformers'}"
    code = f"import sys; from helpers import metrics; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- Errors ----


@pytest.mark.parametrize("name", metrics.TEXT_METRICS)
@pytest.mark.parametrize("call", [metrics.score, metrics.interval])
def test_errors_of_text_scores(call, name):
    for predictions, references, message in [
        (["a", "b"], ["a"], "2 predictions but 1 references"),
        ([], [], "nothing to score"),
        (None, ["a"], "0 predictions but 1 references"),
        ("red", ["red"], r"predictions is one text\. Pass a list"),
        (["red"], "red", r"references is one text\. Pass a list"),
        (["a", None], ["a", "b"], 'row 2: the prediction is None, not text.*no answer as ""'),
        (["a"], [None], "row 1: the reference is None, not text"),
        (["a"], [["a", None]], "row 1: the reference is None, not text"),
        (["a"], [[]], "row 1 has an empty list of references"),
        ([[5, 6]], ["a"], r"row 1: the prediction is \[5, 6\], not text.*tokenizer\.batch_decode"),
        (np.array([5, 6]), np.array([5, 6]), r"row 1: the prediction is 5, not text.*tokenizer\.batch_decode"),
        (["a"], [{"text": ["a"]}], "row 1: the reference is {'text': .*Pass the text alone"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(name, predictions, references)


def test_unknown_text_metrics():
    with pytest.raises(ValueError, match=r'unknown metric "rougel" \(closest: rougeL\)'):
        metrics.score("rougel", ["a"], ["a"])
    with pytest.raises(ValueError, match=r'unknown metric "blue" \(closest: bleu\)'):
        metrics.score("blue", ["a"], ["a"])


# ---- For the Trainer ----


def test_texts_of_a_trainer_that_generates(tmp_path):
    from types import SimpleNamespace

    from datasets import Dataset
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )  # fmt: skip

    from helpers import env

    path = env.model_path("tiny-seq2seq")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSeq2SeqLM.from_pretrained(path)
    texts = [" ".join(["good"] * n) for n in (1, 5, 2, 9, 3)]
    rows = [{"input_ids": ids, "labels": ids} for ids in tokenizer(texts)["input_ids"]]
    settings = dict(predict_with_generate=True, per_device_eval_batch_size=2, report_to="none", use_cpu=True)
    seen = {}

    def compute_metrics(evaluation):
        seen["labels"], seen["predictions"] = evaluation.label_ids, evaluation.predictions
        return metrics.for_texts(tokenizer)(evaluation)

    trainer = Seq2SeqTrainer(
        model, Seq2SeqTrainingArguments(tmp_path, **settings), eval_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer), processing_class=tokenizer, compute_metrics=compute_metrics,
    )  # fmt: skip
    scores = trainer.evaluate(max_new_tokens=4)
    assert {"eval_exact_match", "eval_rougeL"} <= scores.keys()
    assert (seen["labels"] == -100).any()

    def score(predictions, labels, *names):
        return metrics.for_texts(tokenizer, *names)(SimpleNamespace(predictions=predictions, label_ids=labels))

    labels = seen["labels"]
    padded = np.where(labels == -100, tokenizer.pad_token_id, labels)
    assert score((padded, None), labels) == {"exact_match": 1.0, "rougeL": 1.0}
    assert score([labels[:2], labels[2:]], labels, "rouge1") == {"rouge1": 1.0}  # batches that are not joined
    assert score([[]] * len(labels), labels, "exact_match") == {"exact_match": 0.0}
    with pytest.raises(ValueError, match=r"no token ids.*logits.*predict_with_generate=True"):
        score(np.zeros((5, 9, 7)), labels)
    with pytest.raises(ValueError, match="5 predictions but 0 references"):
        score(padded, None)
    with pytest.raises(ValueError, match='unknown metric "accuracy"'):
        metrics.for_texts(tokenizer, "accuracy")
    with pytest.raises(ValueError, match=r"-100.*row 1|row 1.*-100 first"):
        metrics.score("rougeL", labels, labels)


# ---- Intervals ----


@pytest.mark.parametrize("name", metrics.TEXT_METRICS)
def test_interval_is_the_plain_scorer_on_the_same_resamples(name):
    predictions, references = random_texts(8, rows=40, several=True)
    rows, _ = metrics._text_statistics(name, predictions, references)
    # Rows with the same statistics are interchangeable: `interval` draws how often each kind occurs.
    _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    draws = np.random.default_rng(3).multinomial(40, counts / 40, size=5)
    scores = []
    for draw in draws:
        index = np.repeat(first, draw)
        assert len(index) == 40
        scores.append(plain_score(name, [predictions[i] for i in index], [references[i] for i in index]))
    found = metrics.interval(name, predictions, references, n=5, seed=3, confidence=0.8)
    assert found == pytest.approx((plain_score(name, predictions, references), *np.quantile(scores, [0.1, 0.9])))
    assert len(set(scores)) > 1


@pytest.mark.parametrize("name", metrics.TEXT_METRICS)
def test_interval_of_texts_is_reproducible(name):
    inputs = random_texts(10, rows=100)
    first = metrics.interval(name, *inputs)
    assert first == metrics.interval(name, *inputs) != metrics.interval(name, *inputs, seed=1)
    assert first.low < first.value < first.high


@pytest.mark.parametrize("name", metrics.CORPUS_METRICS)
def test_sacrebleu_still_has_what_the_intervals_stand_on(name):
    scorer = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}[name]()
    advice = f"sacrebleu {sacrebleu.__version__} changed its private statistics: rewrite metrics._text_statistics"
    for method in ("_extract_corpus_statistics", "_compute_score_from_stats"):
        assert hasattr(scorer, method), f"{method} is gone. {advice}"
    predictions, references = random_texts(12, rows=30)
    rows = np.array(scorer._extract_corpus_statistics(predictions, [references]))
    assert rows.ndim == 2, advice
    assert np.issubdtype(rows.dtype, np.integer), advice
    total = scorer._compute_score_from_stats(rows.sum(0).tolist()).score
    assert total == scorer.corpus_score(predictions, [references]).score, advice


# ---- Loss over tokens ----


def tiny(kind):
    """A random model with dropout, and its batches: of different sizes, padded, the labels of some tokens left out."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    size = dict(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    t5 = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0)
    model = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**size, attention_dropout=0.3)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**t5, dropout_rate=0.3)),
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**size)),
        "bert classes": lambda: t.BertForSequenceClassification(t.BertConfig(**size, num_labels=3)),
    }[kind]()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.5)  # far from uniform, so that a slip shows
    batches = []
    for rows, length, kept in [(5, 9, 0.3), (2, 4, 0.9), (1, 12, 1.0)]:
        ids = torch.randint(3, 40, (rows, length))
        mask = torch.ones_like(ids)
        mask[0, length - 2 :] = 0
        labels = torch.randint(3, 40, (rows, length)) if kind in ("t5", "bert") else ids.clone()
        labels[(torch.rand(rows, length) > kept) | (mask == 0)] = -100
        if kind == "bert classes":
            labels = torch.randint(3, (rows,))
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return model, batches


def by_hand(model, batches, shifted):
    """Token by token, in double precision."""
    import torch

    total, n_tokens = 0.0, 0
    model.eval()
    for batch in batches:
        with torch.no_grad():
            logits = model(**batch).logits
        if batch["labels"].ndim == 1:  # one label for a row
            logits, labels = logits[:, None], batch["labels"][:, None]
        else:
            labels = batch["labels"]
        for row in range(labels.shape[0]):
            for place in range(labels.shape[1]):
                if labels[row, place] == -100 or (shifted and place == 0):
                    continue
                seen = logits[row, place - 1 if shifted else place].double()
                total -= torch.log_softmax(seen, -1)[labels[row, place]].item()
                n_tokens += 1
    return total, n_tokens


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert", "bert classes"])
def test_total_loss_by_hand_and_by_the_model(kind):
    model, batches = tiny(kind)
    total, n_tokens = metrics.total_loss(model, batches)
    expected, n_expected = by_hand(model, batches, shifted=kind in ("llama", "gpt2"))
    assert n_tokens == n_expected
    assert total == pytest.approx(expected, rel=1e-6)
    assert metrics.perplexity(total, n_tokens) == pytest.approx(np.exp(expected / n_expected), rel=1e-6)
    for batch in batches:  # the model's own mean
        total, n_tokens = metrics.total_loss(model, [batch])
        assert total / n_tokens == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_total_loss_does_not_depend_on_the_batches_and_the_mean_of_means_does():
    model, batches = tiny("llama")
    rows = [
        {key: value[i : i + 1] for key, value in batch.items()}
        for batch in batches
        for i in range(len(batch["labels"]))
    ]
    total, n_tokens = metrics.total_loss(model, batches)
    one_by_one, n_one_by_one = metrics.total_loss(model, iter(rows))
    assert n_tokens == n_one_by_one
    assert one_by_one == pytest.approx(total, rel=1e-6)
    means = [metrics.total_loss(model, [batch]) for batch in batches]
    assert abs(np.mean([t / n for t, n in means]) - total / n_tokens) > 0.01


def test_total_loss_leaves_modes_and_gradients_alone():
    model, batches = tiny("llama")
    model.train()
    model.model.layers[0].eval()  # such as a frozen part
    before = [module.training for module in model.modules()]
    first = metrics.total_loss(model, batches)
    assert [module.training for module in model.modules()] == before
    assert first == metrics.total_loss(model, batches)  # dropout was off
    assert all(weights.grad is None for weights in model.parameters())
    with pytest.raises(ValueError, match=r"batch 2 has no labels, only input_ids\. Add them"):
        metrics.total_loss(model, [batches[0], {"input_ids": batches[1]["input_ids"]}])
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_total_loss_of_adapters(kind):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    task = {"llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}[kind]
    for config in (LoraConfig(task_type=task), PromptTuningConfig(task_type=task, num_virtual_tokens=3)):
        base, batches = tiny(kind)
        model = get_peft_model(base, config)
        for batch in batches:
            if kind == "llama":
                batch["labels"][:, 0] = -100  # the first token has nothing before it but the prompt tuning's own
            total, n_tokens = metrics.total_loss(model, [batch])
            assert n_tokens == (batch["labels"] != -100).sum()
            model.eval()
            assert total / n_tokens == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_total_loss_of_nothing():
    model, batches = tiny("llama")
    masked = {key: value.clone() for key, value in batches[0].items()}
    masked["labels"][:] = -100
    for nothing in ([masked], []):
        assert metrics.total_loss(model, nothing) == (0.0, 0)
    with pytest.raises(ValueError, match="0 tokens: every label is -100, or a generator"):
        metrics.perplexity(*metrics.total_loss(model, [masked]))


def test_perplexity_by_hand_and_its_errors():
    import torch

    assert metrics.perplexity(10 * np.log(7), 10) == pytest.approx(7)
    assert metrics.perplexity(torch.tensor(4.0), torch.tensor(2)) == pytest.approx(np.exp(2))
    assert metrics.perplexity(0.0, 5) == 1.0
    assert metrics.perplexity(1e6, 10) == float("inf")
    for total in (float("nan"), -0.1, float("inf")):
        with pytest.raises(ValueError, match="expected a finite sum of losses"):
            metrics.perplexity(total, 10)
    for n_tokens in (2.31, -3, float("nan")):
        with pytest.raises(ValueError, match=r"perplexity\(total_loss=1000, n_tokens=.*one token or more"):
            metrics.perplexity(1000, n_tokens)
