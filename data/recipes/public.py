"""Reference runs on public data: which settings a model wants, and what it reaches with those of `env.recommend`.

    python data/recipes/public.py sweep --data FOLDER    # rates around the recommended: seed 0, validation rows only
    python data/recipes/public.py final --data FOLDER    # the recommended setting: seeds 1 to 3, test rows scored once

FOLDER holds one folder a set with train, validation and test (CSV or JSON Lines); without --data the sets are read from
the Hub. A point whose record is there is not run again, so the command goes on where it was broken off. PLAN is what is
to be run, the most telling first; --sets, --models, --methods and --rows take a part of it, --rates and --epochs add a
point. Records hold figures only, never a row of the data: `rows` has what was right in each row, so that two
runs can be compared row by row.
"""

import argparse
import functools
import json
import math
import random
import sys
import time
from pathlib import Path

import numpy as np

from helpers import env, generate, record, text

RESULTS = env.DATA / "results" / "public"
PARQUET = "refs/convert/parquet"  # the Hub's own conversion of sets that come as a script
SETS = {  # name: (on the Hub, task, columns of the input and the target in a folder, and on the Hub)
    "ag_news": ({"path": "fancyzhx/ag_news"}, "classes", ("text", "label"), ("text", "label")),
    "movie_sentences": (
        {"path": "cornell-movie-review-data/rotten_tomatoes"}, "classes", ("sentence", "opinion"), ("text", "label"),
    ),
    "clinc150": ({"path": "clinc/clinc_oos", "name": "plus"}, "classes", ("query", "intent"), ("text", "intent")),
    "wnut17": ({"path": "leondz/wnut_17", "revision": PARQUET}, "tags", ("tokens", "tags"), ("tokens", "ner_tags")),
    "e2e": (
        {"path": "tuetschek/e2e_nlg", "revision": PARQUET}, "texts", ("facts", "sentence"),
        ("meaning_representation", "human_reference"),
    ),
}  # fmt: skip
PLAN = [  # set, rows of the training (None: all), model, method, multiples of the recommended rate to try
    ("movie_sentences", 300, "minilm", "full", (1, 0.5, 2)),
    ("clinc150", 1000, "minilm", "full", (1, 2, 0.5)),
    ("wnut17", 1000, "minilm", "full", (1, 2, 0.5)),
    ("ag_news", 300, "minilm", "full", (1, 0.5, 2)),
    ("clinc150", None, "minilm", "full", (1, 2)),
    ("movie_sentences", 1000, "minilm", "full", (1, 0.5, 2)),
    ("e2e", 500, "smollm2", "lora", (1,)),
    ("movie_sentences", 300, "minilm", "lora", (1, 0.5, 2)),
    ("movie_sentences", 1000, "tiny-encoder", "full", (1, 0.5, 2)),
    ("movie_sentences", 100, "minilm", "full", (1, 0.5, 2)),
    ("ag_news", 100, "minilm", "full", (1, 0.5, 2)),
    ("wnut17", 300, "minilm", "full", (1, 2)),
    ("wnut17", None, "minilm", "full", (1, 2)),
    ("ag_news", 1000, "minilm", "full", (1, 0.5, 2)),
    ("movie_sentences", None, "minilm", "full", (1, 0.5)),
    ("ag_news", None, "minilm", "full", (1, 0.5)),
    ("clinc150", 1000, "minilm", "lora", (1, 0.5, 2)),
    ("wnut17", 1000, "minilm", "lora", (1, 0.5)),
    ("ag_news", 1000, "minilm", "lora", (1, 0.5)),
    ("clinc150", 300, "minilm", "full", (1, 2)),
    ("clinc150", 100, "minilm", "full", (1,)),
    ("wnut17", 100, "minilm", "full", (1, 2)),
    ("e2e", 500, "smollm2", "lora", (0.5, 2)),
]
LENGTH = 128
SEEDS = (1, 2, 3)  # of the final runs; the sweep has seed 0
GENERATED = 100  # rows for which texts are written


@functools.cache
def read(name, folder):
    """{split: Dataset} with the columns `x` and `y`, labels as class numbers; and the names of the classes."""
    import datasets

    hub, task, columns, columns_there = SETS[name]
    if folder:
        files = {path.stem: str(path) for path in sorted((Path(folder) / name).iterdir())}
        kind = "csv" if next(iter(files.values())).endswith(".csv") else "json"
        splits = datasets.load_dataset(kind, data_files=files)
    else:
        splits, columns = datasets.load_dataset(**hub), columns_there
    splits = splits.select_columns(list(columns)).rename_columns(dict(zip(columns, "xy", strict=True)))
    if task == "texts":
        return splits, []
    types = splits["train"].features.copy()
    inner = types["y"].feature if task == "tags" else types["y"]
    name_of = getattr(inner, "int2str", lambda value: value)  # the Hub has numbers with names
    values = [name_of(value) for value in splits["train"]["y"]]
    names = sorted({tag for tags in values for tag in tags} if task == "tags" else set(values))
    number = {label: i for i, label in enumerate(names)}

    def encode(row):
        value = name_of(row["y"])
        return {"y": [number.get(tag, number["O"]) for tag in value] if task == "tags" else number[value]}

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


def chosen(splits, rows, seed):
    """The rows of the training: as many as wanted, other ones for each seed."""
    train = splits["train"]
    return train.select(random.Random(seed).sample(range(len(train)), min(rows or len(train), len(train))))


def scores(task, predictions, references, names):
    """The scores, and what they are made of in each row: 1 for a right class, or the entities right, said and there."""
    if task == "classes":
        from sklearn.metrics import f1_score

        hits = predictions == references
        found = {"accuracy": float(hits.mean()), "f1_macro": float(f1_score(references, predictions, average="macro"))}
        return found | {"predicted_classes": len(set(predictions.tolist()))}, "".join("01"[int(hit)] for hit in hits)
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2, Entities

    said, right = ([[names[i] for i in row] for row in rows] for rows in (predictions, references))
    entities = [[{e.to_tuple()[1:] for e in row} for row in Entities(rows, IOB2).entities] for rows in (said, right)]
    counts = [[len(one & other), len(one), len(other)] for one, other in zip(*entities, strict=True)]
    return {"f1": float(f1_score(right, said, mode="strict", scheme=IOB2))}, counts


def adapt(model, method, task):
    """The model as the method trains it."""
    import peft

    if method == "full":
        return model
    kind = {"tags": "TOKEN_CLS", "classes": "SEQ_CLS", "texts": "CAUSAL_LM"}[task]
    head = {"exclude_modules": ["classifier"]} if task == "tags" else {}  # it is trained whole, as for classes
    config = peft.LoraConfig(task_type=kind, r=8, lora_alpha=16, lora_dropout=0.1, target_modules="all-linear", **head)
    return peft.get_peft_model(model, config)


def predict(model, examples, collator):
    """The most likely class of each row (of each word that has a label), in the order of the rows."""
    import torch

    order, said = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"])), {}
    model.eval()
    for start in range(0, len(order), 64):
        numbers = order[start : start + 64]
        batch = collator([examples[i] for i in numbers]).to(model.device)
        labels = batch.pop("labels")
        with torch.inference_mode():
            best = model(**batch).logits.argmax(-1)
        pairs = zip(best.cpu().numpy(), labels.cpu().numpy(), strict=True)
        said |= dict(zip(numbers, [row[there != -100] if row.ndim else row for row, there in pairs], strict=True))
    said = [said[i] for i in range(len(examples))]
    return said if said[0].ndim else np.array(said)


def arguments(recommended, rate, epochs, rows, seed):
    import torch
    import transformers

    steps = epochs * math.ceil(rows / recommended["batch_size"])
    return transformers.TrainingArguments(
        output_dir=env.fresh_folder("public"),
        learning_rate=rate,
        max_steps=steps,
        warmup_steps=recommended["warmup_ratio"],
        per_device_train_batch_size=recommended["batch_size"],
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        optim="adamw_torch",
        logging_steps=math.ceil(steps / 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )


def run(name, splits, names, model_name, method, train, recommended, rate, epochs, seed, parts):
    """Trains once; returns the record's fields."""
    import torch
    import transformers

    task, path = SETS[name][1], env.model_path(model_name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    transformers.set_seed(seed)
    kind = {"tags": "TokenClassification", "classes": "SequenceClassification", "texts": "CausalLM"}[task]
    options = {"num_labels": len(names)} if names else {}
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(path, dtype=torch.float32, **options)
    model = adapt(model, method, task)
    args, metrics, rows = arguments(recommended, rate, epochs, len(train), seed), {}, {}
    if task == "texts":
        collator = transformers.DataCollatorForSeq2Seq(tokenizer)
        examples = text.tokenize_chat(train.map(as_chat, remove_columns=train.column_names), tokenizer)
        for part in parts:
            metrics[f"{part}_untuned"], rows[f"{part}_untuned"] = written(model, tokenizer, splits[part])
    else:
        tags = task == "tags"
        collator = (transformers.DataCollatorForTokenClassification if tags else transformers.DataCollatorWithPadding)(
            tokenizer
        )
        examples = tokenized(train, tokenizer, task)
    trainer = transformers.Trainer(model, args, train_dataset=examples, data_collator=collator)
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    for part in parts:
        if task == "texts":
            metrics[part], rows[part] = written(model, tokenizer, splits[part])
            continue
        said = predict(model, tokenized(splits[part], tokenizer, task), collator)
        references = splits[part]["y"][:]
        if task == "tags":  # words that were cut off count as wrong: nothing was said of them
            said = [[*row, *[names.index("O")] * (len(right) - len(row))] for row, right in zip(said, references)]  # noqa: B905
        metrics[part], rows[part] = scores(task, said, np.array(references) if task == "classes" else references, names)
    settings = {
        "set": name, "model": model_name, "method": method, "rows": len(train), "learning_rate": rate, "seed": seed,
        "epochs": epochs, "steps": args.max_steps, "batch": recommended["batch_size"], "max_length": LENGTH,
        "classes": len(names), "warmup": recommended["warmup_ratio"], "weight_decay": 0.01,
        "weights": "from Q4_1" if str(path).endswith("from-Q4_1") else "as published",
    }  # fmt: skip
    curve = [{k: round(log[k], 4) for k in ("step", "loss")} for log in trainer.state.log_history if "loss" in log]
    return {"settings": settings, "metrics": metrics, "rows": rows, "curve": curve, "seconds": round(seconds)}


def as_chat(row):
    question = f"Write one sentence about a restaurant from these facts. {row['x']}"
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": row["y"]}]}


def written(model, tokenizer, rows):
    """BLEU and ROUGE-L of what the model writes, and what BLEU sums and ROUGE-L averages for each row."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    rows = rows.select(range(min(GENERATED, len(rows))))
    answers = generate.texts(model, tokenizer, [as_chat(row)["messages"] for row in rows], batch_size=25)
    right, bleu, rouge = rows["y"][:], BLEU(), RougeScorer(["rougeL"])
    f1 = [rouge.score(one, other)["rougeL"].fmeasure for one, other in zip(right, answers, strict=True)]
    counts = bleu._extract_corpus_statistics(answers, [right])
    found = {"bleu": bleu.corpus_score(answers, [right]).score, "rougeL": float(np.mean(f1))}
    return found, [[*map(int, row), round(score, 4)] for row, score in zip(counts, f1, strict=True)]


def word_counts(splits, names, train, parts):
    """TF-IDF of words and pairs, logistic regression; its strength is chosen on validation rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

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


def word_list(splits, names, train, parts):
    """Each word gets its most frequent tag in the training rows, "O" if it was never seen; I after O becomes B."""
    from collections import Counter, defaultdict

    counts = defaultdict(Counter)
    for row in train:
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


def rounded(metrics):
    return {part: {key: round(value, 3) for key, value in found.items()} for part, found in metrics.items()}


def exists(folder, name):
    return (folder / f"{name}.json").exists()


def baseline(name, splits, names, train, seed, parts):
    """The record of word counts or the word list for these rows, if it is not there yet."""
    task, folder, label = SETS[name][1], RESULTS / name, f"baseline-{len(train)}-{seed}"
    if task == "texts" or exists(folder, label):
        return
    metrics, rows = (word_list if task == "tags" else word_counts)(splits, names, train, parts)
    settings = {"set": name, "method": "baseline", "rows": len(train), "seed": seed}
    record.save(folder, label, settings=settings, metrics=metrics, rows=rows, versions=env.versions())
    print(
        name, label, {part: {k: round(v, 3) for k, v in found.items()} for part, found in metrics.items()}, flush=True
    )


def point(options, name, rows, model, method, rate, epochs, seed, parts):
    """Runs one point and its baseline, if their records are not there."""
    splits, names = read(name, options.data)
    train = chosen(splits, rows, seed)
    baseline(name, splits, names, train, seed, parts)
    recommended = env.recommend(model, method, len(train), len(names) or None)
    epochs = epochs or recommended["epochs"]
    rate = float(f"{rate(recommended['learning_rate']):.2g}")
    label = f"{model}-{method}-{len(train)}-{rate:g}-{epochs}-{seed}"
    if exists(RESULTS / name, label):
        return
    fields = run(name, splits, names, model, method, train, recommended, rate, epochs, seed, parts)
    record.save(RESULTS / name, label, **fields, machine=env.machine(), versions=env.versions())
    steps, seconds = fields["settings"]["steps"], fields["seconds"]
    print(name, label, f"{steps} steps, {seconds} s", rounded(fields["metrics"]), flush=True)


def summed(task, rows):
    """The score from what is right in the rows, for the first metric of the task: draws x rows x counts -> draws."""
    if task == "classes":
        return rows.mean(1)[:, 0]
    sums = rows.sum(1)
    if task == "tags":
        right, said, there = sums.T
        return 2 * right / np.maximum(said + there, 1)
    from sacrebleu.metrics import BLEU

    return np.array([
        BLEU.compute_bleu(one[2:6].tolist(), one[6:10].tolist(), int(one[0]), int(one[1])).score / 100 for one in sums
    ])  # fmt: skip


def outcomes(rows):
    """What a record says of its rows, as numbers: rows x counts."""
    return np.array([[int(row)] if isinstance(row, str) else row for row in rows], float)


def ahead(task, runs, others, draws=1000):
    """How far runs are ahead of others on the same rows, in points: the mean over seeds and its 95 % interval.

    Each side has one entry a seed: what was right in each row. Rows and seeds are drawn with replacement.
    """
    pairs = [(outcomes(one), outcomes(two)) for one, two in zip(runs, others, strict=True)]
    rng, rows = np.random.default_rng(0), len(pairs[0][0])
    picks = np.vstack([np.arange(rows), rng.integers(rows, size=(draws, rows))])
    gains = 100 * np.array([summed(task, one[picks]) - summed(task, two[picks]) for one, two in pairs])
    drawn = [row[rng.integers(len(pairs), size=len(pairs))].mean() for row in gains[:, 1:].T]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{gains[:, 0].mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def recorded():
    """{(set, rows, model, method): its runs}, each with the record of its baseline."""
    places = {}
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        runs = record.load(folder)
        baselines = {
            (run["settings"]["rows"], run["settings"]["seed"]): run
            for run in runs
            if run["settings"]["method"] == "baseline"
        }
        for run in runs:
            settings = run["settings"]
            if settings["method"] == "baseline":
                continue
            key = (settings["set"], settings["rows"], settings["model"], settings["method"])
            run["baseline"] = baselines.get((settings["rows"], settings["seed"]))
            places.setdefault(key, []).append(run)
    return places


def is_recommended(run):
    settings = run["settings"]
    wanted = env.recommend(settings["model"], settings["method"], settings["rows"], settings["classes"] or None)
    return (settings["learning_rate"], settings["epochs"]) == (wanted["learning_rate"], wanted["epochs"])


def first(run, part, task):
    """The first metric of the task, 0 to 1."""
    found = run["metrics"][part]
    return {"classes": found.get("accuracy"), "tags": found.get("f1"), "texts": found.get("bleu", 0) / 100}[task]


def rival(run):
    """What a run has to beat: word counts or the word list on the same rows, for texts the untuned model."""
    if SETS[run["settings"]["set"]][1] != "texts":
        return run["baseline"]
    untuned = {
        key: {part.removesuffix("_untuned"): found for part, found in run[key].items() if part.endswith("_untuned")}
        for key in ("metrics", "rows")
    }
    return run | untuned


METRICS = {"classes": "accuracy", "tags": "entity F1", "texts": "BLEU / 100"}


def table(part, seeds):
    """What the recommended setting reached, beside the baseline and (for seed 0) the best of all that was tried."""
    lines = []
    for (name, rows, model, method), runs in sorted(recorded().items()):
        task, runs = SETS[name][1], [run for run in runs if run["settings"]["seed"] in seeds and part in run["metrics"]]
        ours = [run for run in runs if is_recommended(run)]
        rivals = [rival(run) for run in ours or runs[:1]]
        if not runs or None in rivals:
            continue
        line = {"set": name, "metric": METRICS[task], "training rows": f"{rows:,}", "model": f"{model}, {method}",
                "baseline": mean(rivals, part, task), "rate": None, "steps": None, "recommended": None,
                "ahead, points": None}  # fmt: skip
        if ours:
            settings, sides = ours[0]["settings"], ([run["rows"][part] for run in side] for side in (ours, rivals))
            line |= {"rate": f"{settings['learning_rate']:g}", "steps": settings["steps"]}
            line |= {"recommended": mean(ours, part, task), "ahead, points": ahead(task, *sides)}
        if seeds == (0,):
            best = max(runs, key=lambda run: first(run, part, task))
            at = "{learning_rate:g}, {steps} steps".format(**best["settings"])
            line["best"] = f"{first(best, part, task):.3f} ({at}; {len(runs)} tried)"
        else:
            line["seeds"] = len(ours)
        lines.append(line)
    return lines or [{"set": "none yet"}]


def mean(runs, part, task):
    return f"{np.mean([first(run, part, task) for run in runs]):.3f}"


def published():
    """What others reached on the whole sets, with the page that says so."""
    rows = json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))
    return [row | {"source": f"[model card]({row['source']})"} for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["sweep", "final"])
    parser.add_argument("--data", help="a folder with the sets; left out: the Hub")
    for option, column in (("--sets", 0), ("--models", 2), ("--methods", 3)):
        parser.add_argument(option, nargs="+", choices=sorted({row[column] for row in PLAN}))
    parser.add_argument("--rows", nargs="+", type=int, help="0 stands for all")
    parser.add_argument("--rates", nargs="+", type=float, help="instead of the plan's")
    parser.add_argument("--epochs", type=int, help="instead of the recommended ones")
    parser.add_argument("--seeds", nargs="+", type=int)
    options = parser.parse_args()
    env.quiet()
    wanted = [options.sets, options.rows, options.models, options.methods]
    for name, rows, model, method, multiples in PLAN:
        if not all(
            not some or value in some for value, some in zip((name, rows or 0, model, method), wanted, strict=True)
        ):
            continue
        if options.command == "final":
            for seed in options.seeds or SEEDS:
                point(options, name, rows, model, method, lambda rate: rate, None, seed, ["validation", "test"])
            continue
        for one in options.rates or multiples:
            rate = (lambda rate, one=one: one) if options.rates else (lambda rate, one=one: one * rate)
            point(options, name, rows, model, method, rate, options.epochs, 0, ["validation"])


if __name__ == "__main__":
    sys.exit(main())
