"""The recorded runs of notebook 07: going on with pre-training in a new domain, then a task with words held out.

    python data/recipes/reading_on.py tiny-encoder   # what is not on record yet; a run that was broken off goes on

Two choices are crossed: which weights train (all of them, or only the vectors of the dialect's words) and whether those
words are whole tokens. Each run reads for thousands of steps and stops at some of them to measure: the loss on both
kinds of text, the order of pairs of words without any label, and the accuracy of a classifier that starts from there.

The rate of reading is the one with the lowest loss on texts of the domain that were kept back: no label and no word
list chooses it. Then the task is trained three times, each time with other labels, and other adjectives held out.
The records are in data/results/07_domain_adaptation/MODEL, one for each run, with what was right for each word.
"""

import argparse
import functools
import itertools
import random
import tempfile
import time
from pathlib import Path

import torch
from corpus import Corpus
from datasets import Dataset
from domain import SIGNS, Workshop
from tokenizers import AddedToken
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from helpers import env, metrics, record

RESULTS = env.DATA / "results" / "07_domain_adaptation"
DEALS, HELD = (0, 1, 2), 13  # each deal holds out other adjectives, so many of each sign
WAYS = {  # way: (words whole?, all weights?)
    "all weights, whole words": (True, True),
    "vectors, whole words": (True, False),
    "all weights, pieces": (False, True),
    "vectors, pieces": (False, False),
}
RATES = {True: (3e-4, 1e-3, 3e-3), False: (1e-2, 3e-2, 1e-1)}  # of reading: all weights, or vectors only
TASK_RATE = 1e-3  # what notebook 01 chose for other texts; any other model gets that of its size
TRIAL = 200  # steps of 8 texts, to choose the rate of reading by the loss on texts kept back
MARKS, LAST = (150, 500, 1000, 1500), {"vectors, whole words": 500}
SCORED = (0, 500, 1500)  # marks at which the task is trained too
EPOCHS = {64: 10, 256: 4, 1000: 2}
PROBES = ("The bellows is {} and [MASK].", "We found the trumpet rank {} and [MASK].", "A {} soundboard, [MASK] work.")


def dealt(deal):
    """{"shown": ..., "held": ...}: the adjectives of each sign."""
    jargon, parts = Workshop().jargon, {"shown": {}, "held": {}}
    for sign in ("praise", "blame"):
        words = random.Random(0).sample(sorted(jargon[sign]), len(jargon[sign]))
        start = deal * HELD
        parts["held"][sign] = words[start : start + HELD]
        parts["shown"][sign] = words[:start] + words[start + HELD :]
    return parts


@functools.cache
def labelled(deal):
    """Reports as lists of (text, label, word): train, and tests with words that train shows and with the others."""
    workshop, words, taken = Workshop(seed=5000 + deal), dealt(deal), set()

    def some(part, count):
        """Different reports, each word as often as the next one."""
        pool, rows = [(label, word) for label in SIGNS for word in words[part][SIGNS[label][0]]], []
        for label, word in [pool[i % len(pool)] for i in range(count)]:
            while (text := workshop.report(label, {SIGNS[label][0]: [word]})["text"]) in taken:
                pass
            taken.add(text)
            rows.append((text, list(SIGNS).index(label), word))
        workshop.random.shuffle(rows)
        return rows

    return {"shown": some("shown", 432), "held": some("held", 416), "train": some("shown", max(EPOCHS))}


class Sweep:
    """The runs of one model."""

    def __init__(self, model):
        self.model, self.path = model, env.model_path(model)
        self.folder = RESULTS / Path(model).name
        jargon = Workshop().jargon
        self.jargon, self.words = jargon, sorted(word for entries in jargon.values() for word in entries)
        pieces, whole = AutoTokenizer.from_pretrained(self.path), AutoTokenizer.from_pretrained(self.path)
        whole.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in self.words])
        self.tokenizers = {False: pieces, True: whole}
        self.pieces = pieces(self.words, add_special_tokens=False)["input_ids"]
        lines = (env.DATA / "domain" / "unlabelled.txt").read_text(encoding="utf-8").splitlines()
        self.unlabelled, kept_back = lines[:-200], lines[-200:]
        self.texts = {"general": list(Corpus(seed=1000).documents(100)), "domain": kept_back[:100]}

    # ---- Reading ----

    def base(self, whole, seed):
        """The base; a whole word starts at the mean of its pieces."""
        set_seed(seed)
        model = AutoModelForMaskedLM.from_pretrained(self.path)
        if whole:
            model.resize_token_embeddings(len(self.tokenizers[True]), mean_resizing=False)
            tables = [model.get_input_embeddings().weight.data, model.get_output_embeddings().bias.data]
            for word, pieces in zip(self.words, self.pieces, strict=True):
                for table in tables:
                    table[self.tokenizers[True].convert_tokens_to_ids(word)] = table[pieces].mean(0)
        return model

    def freeze_but_vectors(self, model, whole):
        """Only the vectors of the dialect train: of its words, or of the pieces that they fall into."""
        model.requires_grad_(False)
        ids = (
            self.tokenizers[True].convert_tokens_to_ids(self.words)
            if whole
            else sorted({id for pieces in self.pieces for id in pieces})
        )
        vectors = model.get_input_embeddings().weight.requires_grad_(True)
        keep = torch.zeros(len(vectors), 1)
        keep[ids] = 1
        vectors.register_hook(lambda gradient: gradient * keep.to(gradient.device))

    def read(self, way, learning_rate, seed, steps, at):
        """Go on with pre-training; `at(step, model)` is called after each step."""
        whole, everything = WAYS[way]
        tokenizer, model = self.tokenizers[whole], self.base(whole, seed)
        if not everything:
            self.freeze_but_vectors(model, whole)
        texts = random.Random(seed).sample(self.unlabelled, len(self.unlabelled))
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=seed)
        model.sparse_prediction = True  # ModernBERT's switch: logits for the masked tokens only
        settings = dict(
            learning_rate=learning_rate,
            max_steps=steps,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=min(50, steps // 10),
            seed=seed,
        )
        trainer = trainer_for(model, rows_of(texts, tokenizer, 128), collator, **settings)
        trainer.add_callback(AtMarks(at))
        trainer.train()

    def losses(self, model, whole):
        """The loss on each kind of text, with the same three tokens in ten masked each time."""
        found, tokenizer = {}, self.tokenizers[whole]
        for name, texts in self.texts.items():
            mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=0)
            rows = sorted(
                (tokenizer(text, truncation=True, max_length=128) for text in texts), key=lambda row: len(row.input_ids)
            )
            total, count = metrics.total_loss(model, [mask(rows[i : i + 50]) for i in range(0, len(rows), 50)])
            found[f"{name}_loss"] = total / count
        return found

    def pairs(self, model, whole):
        """Share of pairs (a word of praise, one of blame) with more praise expected beside the first: no label used."""
        tokenizer, plain = self.tokenizers[whole], Workshop().bank
        ids = {
            sign: [t[0] for t in tokenizer(plain[sign], add_special_tokens=False)["input_ids"] if len(t) == 1]
            for sign in ("good", "bad")
        }
        signs = {}
        for sign in ("praise", "blame"):
            signs[sign] = 0
            for probe in PROBES:
                texts = [probe.format(word).replace("[MASK]", tokenizer.mask_token) for word in self.jargon[sign]]
                batch = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
                with torch.no_grad():
                    logits = model.eval()(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
                signs[sign] = signs[sign] + logits[:, ids["good"]].logsumexp(-1) - logits[:, ids["bad"]].logsumexp(-1)
        return (signs["praise"][:, None] > signs["blame"][None]).float().mean().item()

    # ---- The task ----

    def classify(self, folder, whole, deal, labels):
        """Fine-tune all weights from this base on some labels; {part: {word: (right, of)}}."""
        set_seed(deal)
        tokenizer = self.tokenizers[whole]
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        rows = labelled(deal)
        train = random.Random(deal).sample(rows["train"], labels)
        examples = rows_of([text for text, _, _ in train], tokenizer, 64).add_column(
            "labels", [label for _, label, _ in train]
        )
        rate = TASK_RATE if Path(self.model).name == "tiny-encoder" else env.recommend(self.model)["learning_rate"]
        settings = dict(learning_rate=rate, num_train_epochs=EPOCHS[labels], per_device_train_batch_size=16)
        trainer = trainer_for(
            model, examples, DataCollatorWithPadding(tokenizer), warmup_steps=0.1, seed=deal, **settings
        )
        trainer.train()
        return {part: by_word(model, tokenizer, rows[part]) for part in ("shown", "held")}

    def measured(self, model, whole):
        """The losses and the pairs."""
        model.sparse_prediction = False
        found = self.losses(model, whole) | {"pairs": self.pairs(model, whole)}
        model.sparse_prediction = True
        return found

    def tasks(self, model, whole, labels):
        """{part: [for each deal, what was right for each word]}: the task from here, with each number of labels."""
        words = {}
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            for count, deal in itertools.product(labels, DEALS):
                for part, by in self.classify(folder, whole, deal, count).items():
                    words.setdefault(f"{part}_{count}", []).append(by)
        return words

    # ---- One record each ----

    def trial_point(self, way, learning_rate, seed=100):
        """A short reading, and the losses after it."""
        kept = {}

        def at(step, model):
            if step == TRIAL:
                kept.update(self.measured(model, WAYS[way][0]))

        self.read(way, learning_rate, seed, TRIAL, at)
        return dict(metrics=kept)

    def curve_point(self, way, learning_rate, seed, marks, scored=SCORED):
        """A long reading, measured at the marks; at those in `scored` the task too. Way None: the base as it is."""
        curve, words, whole = [], {}, bool(way and WAYS[way][0])

        def at(step, model):
            if step not in marks:
                return
            found = self.measured(model, whole)
            if step in scored:
                labels = tuple(EPOCHS) if way is None else (256,)
                words[str(step)] = self.tasks(model, whole, labels)
                found |= {part: sum(map(share_of, deals)) / len(deals) for part, deals in words[str(step)].items()}
            curve.append({"step": step, **found})
            print(way, seed, step, {name: round(value, 3) for name, value in found.items()}, flush=True)
            model.train()

        if way is None:
            at(0, self.base(False, seed))
        else:
            self.read(way, learning_rate, seed, marks[-1], at)
        last = {name: value for name, value in curve[-1].items() if name != "step"}
        return dict(metrics=last, curve=curve, words=words)

    # ---- All of them ----

    def run(self, name, point, **settings):
        """Make a run and save it, unless its record is there."""
        path = self.folder / f"{name}.json"
        if path.exists():
            return next(run for run in record.load(self.folder) if run["name"] == name)
        started = time.perf_counter()
        found = point(**settings)
        settings = {**settings, "model": self.model}
        about = dict(seconds=round(time.perf_counter() - started, 1), machine=env.machine(), versions=env.versions())
        record.save(self.folder, name, settings=settings, **found, **about)
        print(
            self.folder.name,
            name,
            f"{about['seconds']} s",
            {k: round(v, 3) for k, v in found["metrics"].items()},
            flush=True,
        )
        return dict(settings=settings, **found)

    def chosen(self):
        """{way: rate of reading}: the one with the lowest loss on the domain's texts that were kept back."""
        best = {}
        for way, (_, everything) in WAYS.items():
            losses = {}
            for rate in RATES[everything]:
                name = f"trial-{slug(way)}-{rate:g}"
                losses[rate] = self.run(name, self.trial_point, way=way, learning_rate=rate)["metrics"]["domain_loss"]
            best[way] = min(losses, key=losses.get)
        return best

    def all(self):
        best = self.chosen()
        print("chosen", best, flush=True)
        self.run("curve-nothing", self.curve_point, way=None, learning_rate=0.0, seed=0, marks=[0])
        for way in ("all weights, whole words", "vectors, whole words", "all weights, pieces"):
            settings = dict(way=way, learning_rate=best[way], seed=0)
            settings["marks"] = [mark for mark in MARKS if mark <= LAST.get(way, mark)]
            if way == "all weights, pieces":
                settings["scored"] = MARKS[-1:]
            self.run(f"curve-{slug(way)}", self.curve_point, **settings)


class AtMarks(TrainerCallback):
    def __init__(self, at):
        self.at = at

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.at(state.global_step, model)


def slug(way):
    return way.replace(",", "").replace(" ", "-")


def rows_of(texts, tokenizer, max_length):
    return Dataset.from_dict(dict(tokenizer(texts, truncation=True, max_length=max_length)))


def trainer_for(model, rows, collator, **changes):
    settings = dict(per_device_train_batch_size=8, weight_decay=0.0, logging_strategy="no", save_strategy="no")
    settings |= dict(train_sampling_strategy="group_by_length", report_to="none", disable_tqdm=True)
    arguments = TrainingArguments(env.fresh_folder("reading_on"), **settings | changes)
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    return trainer


def by_word(model, tokenizer, rows):
    """{word: [right, of]} of the reports."""
    rows, found = sorted(rows, key=lambda row: len(row[0])), {}
    model.eval()
    for start in range(0, len(rows), 50):
        batch = rows[start : start + 50]
        inputs = tokenizer(
            [text for text, _, _ in batch], truncation=True, max_length=64, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            said = model(**inputs.to(model.device)).logits.argmax(-1).tolist()
        for (_, label, word), answer in zip(batch, said, strict=True):
            right, of = found.get(word, (0, 0))
            found[word] = (right + (answer == label), of + 1)
    return {word: list(found[word]) for word in sorted(found)}


def share_of(by):
    return sum(right for right, _ in by.values()) / sum(of for _, of in by.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    env.quiet()
    torch.set_flush_denormal(True)
    for model in given.models:
        Sweep(model).all()


if __name__ == "__main__":
    main()
