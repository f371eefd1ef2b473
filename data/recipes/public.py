"""Reference runs on public data: which learning rate a real model wants, and what it reaches.

    python data/recipes/public.py sweep --data FOLDER    # rates on one seed, scored on validation rows only

FOLDER holds one folder a set with train, validation and test (CSV or JSON Lines); without --data the sets are read from
the Hub. A point whose record is there is not run again, so the command goes on where it was broken off. Records hold
figures only, never a row of the data: `hits` is one bit a row (1 = right) in hexadecimal, so that two runs can be
compared row by row.
"""

import argparse
import math
import random
import sys
import time
from pathlib import Path

import numpy as np

from helpers import env, record

RESULTS = env.DATA / "results" / "public"
SETS = {  # name: (Hub id, task, columns of the input and of the target)
    "ag_news": ("fancyzhx/ag_news", "classes", "text", "label"),
    "movie_sentences": ("cornell-movie-review-data/rotten_tomatoes", "classes", "sentence", "opinion"),
    "clinc150": ("clinc/clinc_oos", "classes", "query", "intent"),
    "wnut17": ("leondz/wnut_17", "tags", "tokens", "tags"),
}
RATES = {"full": (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3), "lora": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)}
BATCH = 16
LENGTH = 128
SEEDS = (0, 1, 2)


def steps_for(rows):
    """Three epochs, and at least 400 steps: a small file needs more passes."""
    return max(400, math.ceil(3 * rows / BATCH))


def read(name, folder):
    """{split: Dataset} with the columns `x` and `y`, labels as class numbers; and the names of the classes."""
    import datasets

    hub, task, x, y = SETS[name]
    if folder:
        files = {path.stem: str(path) for path in sorted((Path(folder) / name).iterdir())}
        kind = "csv" if next(iter(files.values())).endswith(".csv") else "json"
        splits = datasets.load_dataset(kind, data_files=files)
    else:
        splits = datasets.load_dataset(hub)
    splits = splits.select_columns([x, y]).rename_columns({x: "x", y: "y"})
    values = splits["train"]["y"][:]
    names = sorted({tag for tags in values for tag in tags} if task == "tags" else set(values))
    number = {label: i for i, label in enumerate(names)}

    def encode(row):
        return {"y": [number.get(tag, number["O"]) for tag in row["y"]] if task == "tags" else number[row["y"]]}

    types = splits["train"].features.copy()
    types["y"] = datasets.List(datasets.Value("int64")) if task == "tags" else datasets.Value("int64")
    return splits.map(encode, features=types), names


def tokenized(rows, tokenizer, task):
    """Examples for the Trainer; a word's tag goes to its first token."""

    def classes(batch):
        return tokenizer(batch["x"], truncation=True, max_length=LENGTH) | {"labels": batch["y"]}

    def tags(batch):
        examples = tokenizer(batch["x"], is_split_into_words=True, truncation=True, max_length=LENGTH)
        examples["labels"] = []
        for i, labels in enumerate(batch["y"]):
            words = examples.word_ids(i)
            first = [
                word is not None and word != before for word, before in zip(words, [None, *words[:-1]], strict=True)
            ]
            examples["labels"].append([labels[word] if new else -100 for word, new in zip(words, first, strict=True)])
        return examples

    return rows.map(tags if task == "tags" else classes, batched=True, remove_columns=rows.column_names)


def hexadecimal(hits):
    return f"{int(''.join('01'[bool(hit)] for hit in hits), 2):0{math.ceil(len(hits) / 4)}x}"


def scores(task, predictions, references, names):
    """Accuracy and macro F1 with a bit a row, or entity F1 (seqeval, strict)."""
    if task == "classes":
        from sklearn.metrics import f1_score

        hits = predictions == references
        found = {"accuracy": float(hits.mean()), "f1_macro": float(f1_score(references, predictions, average="macro"))}
        return found | {"predicted_classes": len(set(predictions.tolist()))}, hexadecimal(hits)
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2

    said = [[names[i] for i in row] for row in predictions]
    right = [[names[i] for i in row] for row in references]
    found = {"f1": float(f1_score(right, said, mode="strict", scheme=IOB2))}
    return found, hexadecimal([one == other for one, other in zip(said, right, strict=True)])


def adapt(model, method, task):
    """The model as the method trains it."""
    import peft

    if method == "full":
        return model
    kind = "TOKEN_CLS" if task == "tags" else "SEQ_CLS"
    config = peft.LoraConfig(task_type=kind, r=8, lora_alpha=16, lora_dropout=0.1, target_modules="all-linear")
    return peft.get_peft_model(model, config)


def run(name, splits, names, model_name, method, rows, rate, seed, parts):
    """Trains once; returns settings, metrics, hits and the curve."""
    import torch
    import transformers

    task, path = SETS[name][1], env.model_path(model_name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    order = random.Random(seed).sample(range(len(splits["train"])), min(rows, len(splits["train"])))
    examples = {part: tokenized(splits[part], tokenizer, task) for part in parts}
    train = tokenized(splits["train"].select(order), tokenizer, task)
    transformers.set_seed(seed)
    auto = (
        transformers.AutoModelForTokenClassification
        if task == "tags"
        else transformers.AutoModelForSequenceClassification
    )
    model = adapt(auto.from_pretrained(path, num_labels=len(names), dtype=torch.float32), method, task)
    steps = steps_for(len(train))
    args = transformers.TrainingArguments(
        output_dir=env.fresh_folder("public"),
        learning_rate=rate,
        max_steps=steps,
        warmup_steps=0.1,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        weight_decay=0.01,
        eval_strategy="steps",
        eval_steps=math.ceil(steps / 4),
        logging_steps=math.ceil(steps / 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    collator = (
        transformers.DataCollatorForTokenClassification if task == "tags" else transformers.DataCollatorWithPadding
    )(tokenizer)

    def compute(evaluation):
        predictions, labels = evaluation.predictions, evaluation.label_ids
        if task == "tags":
            predictions = [row[label != -100] for row, label in zip(predictions, labels, strict=True)]
            labels = [row[row != -100] for row in labels]
        compute.last = scores(task, predictions, labels, names)
        return compute.last[0]

    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=examples["validation"],
        data_collator=collator,
        compute_metrics=compute,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.monotonic()
    trainer.train()
    seconds, metrics, hits = time.monotonic() - started, {}, {}
    for part in parts:
        compute_result = trainer.predict(examples[part]).metrics
        found, hits[part] = compute.last
        metrics[part] = found | {"loss": compute_result["test_loss"]}
    settings = {
        "set": name, "model": model_name, "method": method, "rows": len(train), "learning_rate": rate, "seed": seed,
        "steps": steps, "batch": BATCH, "max_length": LENGTH, "classes": len(names), "warmup": 0.1,
        "weight_decay": 0.01, "weights": "from Q4_1" if str(path).endswith("from-Q4_1") else "as published",
    }  # fmt: skip
    curve = [
        {k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k}
        for row in trainer.state.log_history
    ]
    return settings, metrics, hits, curve, seconds


def word_counts(splits, names, rows, seed, parts):
    """TF-IDF of words and pairs, logistic regression; its strength is chosen on validation rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    order = random.Random(seed).sample(range(len(splits["train"])), min(rows, len(splits["train"])))
    train = splits["train"].select(order)
    x = {part: splits[part]["x"][:] for part in {*parts, "validation"}}
    y = {part: np.array(splits[part]["y"][:]) for part in x}
    fitted = []
    for strength in (1, 10, 100):
        pipe = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=strength, max_iter=1000)
        )
        fitted.append(pipe.fit(train["x"][:], train["y"][:]))
    best = max(fitted, key=lambda pipe: pipe.score(x["validation"], y["validation"]))
    found = {part: scores("classes", best.predict(x[part]), y[part], names) for part in parts}
    return {part: one for part, (one, _) in found.items()}, {part: bits for part, (_, bits) in found.items()}


def word_list(splits, names, rows, seed, parts):
    """Each word gets its most frequent tag in the training rows, "O" if it was never seen; I after O becomes B."""
    from collections import Counter, defaultdict

    order = random.Random(seed).sample(range(len(splits["train"])), min(rows, len(splits["train"])))
    counts = defaultdict(Counter)
    for row in splits["train"].select(order):
        for word, tag in zip(row["x"], row["y"], strict=True):
            counts[word.lower()][tag] += 1
    usual = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    outside, found, hits = names.index("O"), {}, {}
    for part in parts:
        said = [[usual.get(word.lower(), outside) for word in row["x"]] for row in splits[part]]
        for row in said:
            for i, tag in enumerate(row):
                name, before = names[tag], names[row[i - 1]] if i else "O"
                if name.startswith("I-") and before[2:] != name[2:]:
                    row[i] = names.index(f"B-{name[2:]}") if f"B-{name[2:]}" in names else outside
        found[part], hits[part] = scores("tags", said, splits[part]["y"][:], names)
    return found, hits


def baseline(name, splits, names, rows, seed, parts):
    kind = word_list if SETS[name][1] == "tags" else word_counts
    return kind(splits, names, rows, seed, parts)


def saved(folder, name):
    return (folder / f"{name}.json").exists()


def sweep(options):
    """Rates on one seed, from the middle outward so that a run that is broken off has said the most."""
    for rows in options.rows:
        for name in options.sets:
            splits, names = read(name, options.data)
            folder = RESULTS / name
            label = f"baseline-{rows}-0"
            if not saved(folder, label):
                metrics, hits = baseline(name, splits, names, rows, 0, ["validation"])
                settings = {"set": name, "method": "baseline", "rows": rows, "seed": 0}
                record.save(folder, label, settings=settings, metrics=metrics, hits=hits, versions=env.versions())
            for method in options.methods:
                for rate in options.rates or RATES[method]:
                    one = f"{options.model}-{method}-{rows}-{rate:g}-0"
                    if saved(folder, one):
                        continue
                    settings, metrics, hits, curve, seconds = run(
                        name, splits, names, options.model, method, rows, rate, 0, ["validation"]
                    )
                    record.save(
                        folder, one, settings=settings, metrics=metrics, hits=hits, curve=curve, seconds=seconds,
                        machine=env.machine(), versions=env.versions(),
                    )  # fmt: skip
                    print(
                        one, {k: round(v, 3) for k, v in metrics["validation"].items()}, f"{seconds:.0f} s", flush=True
                    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["sweep"])
    parser.add_argument("--data", help="a folder with the sets; left out: the Hub")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1000])
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--rates", nargs="+", type=float)
    options = parser.parse_args()
    env.quiet()
    sweep(options)


if __name__ == "__main__":
    sys.exit(main())
