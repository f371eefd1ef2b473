"""The recorded runs of notebooks 01 and 01b: rates chosen on validation rows, then one look at the test rows.

    python data/recipes/classification.py tiny-encoder minilm   # what is not on record yet; a run broken off goes on
    python data/recipes/classification.py minilm --only intents # one of reviews, skewed, intents, entities

Any encoder will do: a name, a folder, a Hub id. The records are in data/results/01_classification/MODEL, one for each
run, with what the model said of each row, so that two models can be compared on the same rows. Notebook 01 shows every
model that has a folder there. A model that is not named in RATES is tried at its recommended rate, half and twice that.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from helpers import data, env, metrics, record, text

RESULTS = env.DATA / "results" / "01_classification"
SEEDS = (0, 1, 2)
RATES = {  # tried on the validation rows, as many for each start; a single one was chosen on other data
    "tiny-encoder": {
        "reviews": (2e-4, 5e-4, 1e-3, 2e-3, 4e-3),
        "intents": (1e-3, 2e-3, 4e-3),
        "entities": (1e-3, 2e-3, 4e-3),
    },
    "minilm": {"reviews": (2e-4,), "intents": (2e-4,), "entities": (3e-4,)},  # from data/results/public
}
STARTS = {"reviews": ("pretrained", "random"), "intents": ("pretrained",), "entities": ("pretrained",)}
TASKS = {  # folder, ending, label, labelled rows
    "reviews": ("reviews", "csv", "label", 500),
    "intents": ("support", "jsonl", "intent", 1000),
    "entities": ("entities", "json", "tags", 1000),
}
PARTS = ("validation_handwritten", "test_same", "test_unseen", "test_handwritten")
MIX = (20, 300, 20)  # of the uneven classes: negative, neutral, positive


class Sweep:
    """The runs of one model."""

    def __init__(self, model):
        self.model, self.path = model, env.model_path(model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        self.folder, self.tasks = RESULTS / Path(model).name, {}

    def splits(self, task):
        """The checked splits of a task, each read once."""
        if task not in self.tasks:
            folder, ending, label, _ = TASKS[task]
            names = ["train", "validation", *PARTS, *(["test_fresh"] if task == "reviews" else [])]
            rows = {name: data.read(env.DATA / folder / f"{name}.{ending}") for name in names}
            self.tasks[task] = data.check_tokens(rows) if task == "entities" else data.check(rows, label=label)
        return self.tasks[task]

    def examples(self, task, rows):
        if task == "entities":
            return text.align_labels(rows, self.tokenizer, max_length=128)
        return text.tokenize(rows, self.tokenizer, label=TASKS[task][2], max_length=128)

    def fit(self, task, rows, *, seed, learning_rate, start="pretrained", epochs=4, loss=None):
        """A model that was trained on these rows."""
        set_seed(seed)
        kind = AutoModelForTokenClassification if task == "entities" else AutoModelForSequenceClassification
        maps = data.label_maps(self.splits(task)["train"], label=TASKS[task][2])
        if start == "random":
            model = kind.from_config(AutoConfig.from_pretrained(self.path, **maps))
        else:
            model = kind.from_pretrained(self.path, **maps)
        arguments = TrainingArguments(
            output_dir=env.fresh_folder("classification"),
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            warmup_steps=0.1,
            train_sampling_strategy="group_by_length",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        collator = (DataCollatorForTokenClassification if task == "entities" else DataCollatorWithPadding)(
            self.tokenizer
        )
        options = dict(train_dataset=self.examples(task, rows), data_collator=collator, compute_loss_func=loss)
        trainer = Trainer(model, arguments, **options)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return model

    def logits(self, task, model, rows):
        """The logits of each row, in the order of the rows; of entities those of each word."""
        examples = self.examples(task, rows)
        order, found = np.argsort(examples["length"][:], kind="stable").tolist(), [None] * len(rows)
        inputs = examples.select_columns(["input_ids", "attention_mask"])
        model.eval()
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            padded = self.tokenizer.pad(inputs[batch], return_tensors="pt").to(model.device)
            with torch.no_grad():
                scores = model(**padded).logits.float().cpu().numpy()
            for i, row in zip(batch, scores, strict=True):
                found[i] = row
        if task == "entities":  # the first token of each word
            firsts = [np.flatnonzero(np.array(labels) != -100) for labels in examples["labels"][:]]
            found = [row[first] for row, first in zip(found, firsts, strict=True)]
        return found

    def word_counts(self, task, rows):
        """TF-IDF of words and pairs of words, and a logistic regression as strong as the validation rows like it."""
        splits, label = self.splits(task), TASKS[task][2]
        fitted = []
        for C in (0.1, 1, 10, 100):
            words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
            pipe = make_pipeline(words, LogisticRegression(C=C, max_iter=2000))
            fitted.append(pipe.fit(rows["text"][:], rows[label][:]))
        rows = splits["validation"]
        return max(fitted, key=lambda pipe: pipe.score(rows["text"][:], rows[label][:]))

    # ---- One run each: settings in, {"metrics": ..., "predictions": ...} out ----

    def rate_point(self, task, start, learning_rate, seed, epochs=4):
        """Train on rows of this seed, look at the validation rows."""
        rows = self.splits(task)["train"].shuffle(seed=seed).select(range(TASKS[task][3]))
        model = self.fit(task, rows, seed=seed, learning_rate=learning_rate, start=start, epochs=epochs)
        return self.said(task, ["validation"], model=model)

    def parts_point(self, task, start, learning_rate, seed):
        """The same at the chosen rate, with all parts; `learning_rate=None` counts words."""
        rows = self.splits(task)["train"].shuffle(seed=seed).select(range(TASKS[task][3]))
        parts = [name for name in self.splits(task) if name != "train"]
        if start == "word counts":
            return self.said(task, parts, pipe=self.word_counts(task, rows))
        return self.said(task, parts, model=self.fit(task, rows, seed=seed, learning_rate=learning_rate, start=start))

    def said(self, task, parts, model=None, pipe=None):
        """Scores and predictions on some parts; the predictions of a part are a digit for each row (or word)."""
        splits, label = self.splits(task), TASKS[task][2]
        found = {"metrics": {}, "predictions": {}}
        logits = {part: self.logits(task, model, splits[part]) for part in parts if model}
        for part in parts:
            references = splits[part][label][:]
            if task == "entities":
                names = splits[part].features["tags"].feature.names
                ids = [row.argmax(-1) for row in logits[part]]
                sides = [[[names[i] for i in row] for row in side] for side in (ids, references)]
                found["metrics"][part] = metrics.score("entity_f1", *sides)
                found["predictions"][part] = " ".join("".join(map(str, row)) for row in ids)
                continue
            ids = pipe.predict(splits[part]["text"][:]) if pipe else np.argmax(logits[part], -1)
            found["metrics"][part] = metrics.score("accuracy", ids, references)
            found["predictions"][part] = "".join(map(str, ids))
        if model and task == "reviews":
            found["calibration"] = calibration({part: np.stack(rows) for part, rows in logits.items()}, splits)
            found["negative"] = {part: softmax(np.stack(rows))[:, 0].round(4) for part, rows in logits.items()}
        return found

    def skewed_point(self, how, learning_rate, seed):
        """Train on 300 neutral rows and 20 of each other class, with the plain loss or a weighted one."""
        rows = self.splits("reviews")["train"].shuffle(seed=seed)
        labels = np.array(rows["label"][:])
        kept = np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in enumerate(MIX)])
        rows = rows.select(kept)
        counts = torch.tensor(MIX, dtype=torch.float32)
        weights = counts.sum() / (len(MIX) * counts)

        def weighted(outputs, labels, num_items_in_batch=None):
            losses = torch.nn.functional.cross_entropy(
                outputs.logits, labels, weights.to(outputs.logits.device), reduction="sum"
            )
            return losses / (num_items_in_batch or len(labels))

        loss = weighted if how == "weighted" else None
        model = self.fit("reviews", rows, seed=seed, learning_rate=learning_rate, loss=loss)
        return self.said("reviews", ["validation", "test_fresh"], model=model)

    # ---- All runs ----

    def run(self, name, point, **settings):
        """Make a run and save it, unless its record is there."""
        if (self.folder / f"{name}.json").exists():
            return
        started = time.perf_counter()
        found = point(**settings)
        settings = {**settings, "model": self.model}
        about = dict(seconds=round(time.perf_counter() - started, 1), machine=env.machine(), versions=env.versions())
        record.save(self.folder, name, settings=settings, **found, **about)
        print(self.folder.name, name, f"{about['seconds']} s", found["metrics"], flush=True)

    def best_rate(self, task, start):
        """The rate that the validation rows like best."""
        if len(self.rates(task)) == 1:
            return self.rates(task)[0]
        runs = [run for run in record.load(self.folder) if run["name"].startswith(prefix("rate", task, start))]
        by_rate = {}
        for run in runs:
            by_rate.setdefault(run["settings"]["learning_rate"], []).append(run["metrics"]["validation"])
        return max(by_rate, key=lambda rate: np.mean(by_rate[rate]))

    def rates(self, task):
        named = RATES.get(Path(self.model).name)
        if named:
            return named[task]
        recommended = env.recommend(self.model)["learning_rate"]
        return tuple(recommended * factor for factor in (0.5, 1, 2))

    def all(self, task, only=None):
        """Every run of a task that is not on record, or those from one start."""
        if task == "skewed":
            rate = self.best_rate("reviews", "pretrained")
            for how, seed in itertools.product(("plain", "weighted"), SEEDS):
                self.run(f"skewed-{how}-{seed}", self.skewed_point, how=how, learning_rate=rate, seed=seed)
            return
        for start in [only] if only else STARTS[task]:
            rates = self.rates(task)
            for rate, seed in itertools.product(rates, SEEDS if len(rates) > 1 else ()):
                settings = dict(task=task, start=start, learning_rate=rate, seed=seed)
                self.run(f"{prefix('rate', task, start)}{rate:g}-{seed}", self.rate_point, **settings)
            for seed in SEEDS:
                settings = dict(task=task, start=start, learning_rate=self.best_rate(task, start), seed=seed)
                self.run(f"{prefix('parts', task, start)}{seed}", self.parts_point, **settings)
        for seed in SEEDS if task != "entities" else ():
            settings = dict(task=task, start="word counts", learning_rate=None, seed=seed)
            self.run(f"{prefix('parts', task, 'word counts')}{seed}", self.parts_point, **settings)


def prefix(kind, task, start):
    """How the names of some records begin; those of the reviews do not say so."""
    return "-".join([kind, *([task] if task != "reviews" else []), start.replace(" ", "-"), ""])


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def calibration(logits, splits):
    """The temperature that suits the validation rows; of each part the confidence and the calibration error.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599
    """
    labels = {part: np.array(splits[part]["label"][:]) for part in logits}
    temperature = min(np.geomspace(0.25, 16, 200), key=lambda t: nll(logits["validation"] / t, labels["validation"]))
    found = {"temperature": float(temperature)}
    for part, rows in logits.items():
        found[part] = {
            "confidence": float(softmax(rows).max(-1).mean()),
            "error": calibration_error(rows, labels[part]),
            "error, scaled": calibration_error(rows / temperature, labels[part]),
        }
    return found


def nll(logits, labels):
    return float(-np.log(softmax(logits)[np.arange(len(labels)), labels] + 1e-12).mean())


def calibration_error(logits, labels, bins=10):
    """How far confidence and accuracy are apart, as a mean over ten bins of equal size in rows (Nguyen, O'Connor 2015).

    Bins of equal width are mostly empty for a model that is nearly always sure.
    """
    probabilities = softmax(logits)
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    groups = np.array_split(np.argsort(confidence, kind="stable"), bins)
    gaps = [abs(confidence[group].mean() - right[group].mean()) * len(group) for group in groups]
    return float(sum(gaps) / len(labels))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--only", choices=["reviews", "skewed", "intents", "entities"])
    parser.add_argument("--start", choices=["pretrained", "random"])
    given = parser.parse_args()
    env.quiet()
    for model in given.models:
        sweep = Sweep(model)
        for task in [given.only] if given.only else ["reviews", "intents", "skewed", "entities"]:
            sweep.all(task, given.start)


if __name__ == "__main__":
    main()
