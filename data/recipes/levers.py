"""The recorded runs of notebook 03: a hundred labels, what each lever costs, and what would fit on which GPU.

    python data/recipes/levers.py tiny-encoder                  # what is not on record yet
    python data/recipes/levers.py minilm --only peaks           # one of fit, peaks, hundred, cost, quality

What a run does is in the cells of the notebook that are tagged `sweep`; they are executed here with the model's name in
the setup cell. A run whose record is there is not run again, so the command goes on where it was broken off. `hits` has
one digit a row (1 = right), so that two runs can be compared row by row. Seconds are those of the processor.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

import lesson
from transformers import BertConfig, LlamaConfig, TrainerCallback

from helpers import env, memory, record

RESULTS = env.DATA / "results" / "03_full_fine_tuning"
NOTEBOOK = "03_full_fine_tuning"
SEEDS = {"hundred": {"tiny-encoder": range(5)}, "levers": range(3)}
SGD = (0.05, 0.2, 0.8)  # stochastic gradient descent needs rates of its own
SHAPES = {  # from the published configurations
    "110M": BertConfig(),  # BERT base
    "1B": LlamaConfig(  # Llama-3.2-1B
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=True, max_position_embeddings=131072,
    ),
    "8B": LlamaConfig(  # Llama-3.1-8B
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072,
    ),
}  # fmt: skip
LIGHT = dict(dtype="bfloat16", activation_checkpointing=True)
WAYS = {
    "fp32": {},
    "bf16 autocast": dict(autocast="bfloat16"),
    "bf16 autocast, checkpointing": dict(autocast="bfloat16", activation_checkpointing=True),
    "pure bf16": dict(dtype="bfloat16"),
    "pure bf16, checkpointing": LIGHT,
    "pure bf16, checkpointing, 8-bit AdamW": LIGHT | dict(optim="adamw_8bit"),
}


def hits(trainer, rows):
    found = trainer.predict(rows)
    return "".join("01"[int(said == true)] for said, true in zip(found.predictions, found.label_ids, strict=True))


def share(digits):
    return digits.count("1") / len(digits)


def hundred_point(model, seed):
    """A hundred labels: the test rows with the models of three epochs, each chosen on validation rows."""
    space = lesson.space(NOTEBOOK, model)
    trainer = space["few_labels"](seed)
    kept, folder = space["kept_epochs"](trainer), trainer.args.output_dir
    rows = space["examples"]["test_same"]
    found = {rule: hits(space["load_epoch"](trainer, row), rows) for rule, row in kept.items()}
    shutil.rmtree(folder)
    curve = [{k: v for k, v in row.items() if "_per_second" not in k} for row in trainer.state.log_history]
    scores = {rule: share(digits) for rule, digits in found.items()}
    return scores, dict(hits=found, epochs={rule: row["epoch"] for rule, row in kept.items()}, curve=curve)


def lever_point(model, lever, learning_rate, seed):
    """300 labels with one lever pulled."""
    trainer, cut = lesson.space(NOTEBOOK, model)["sweep_point"](lever, learning_rate, seed)
    found = {part: hits(trainer, cut[part]) for part in ("validation", "test_same")}
    return {part: share(digits) for part, digits in found.items()}, {"hits": found}


class Stopwatch(TrainerCallback):
    """Processor seconds of each step but the first, which is slow."""

    def on_step_end(self, args, state, control, **kwargs):
        now = time.process_time()
        if state.global_step > 1:
            self.steps.append(now - self.last)
        self.last = now

    def __init__(self):
        self.steps = []


def cost_point(model, levers, rounds=2, steps=3):
    """Peak and seconds of a step of 16 rows of 128 tokens with each lever, in turns; the median over all turns."""
    space = lesson.space(NOTEBOOK, model)
    seconds, peaks = {lever: [] for lever in levers}, {}
    for turn in range(rounds + 1):
        for lever in levers:
            changes, dtype, length = space["changes_of"](lever)
            watch = memory.measure() if turn == 0 else Stopwatch()
            rows = space["splits"]["train"].select(range(32 if turn == 0 else 16 * (steps + 1)))
            rows = space["text"].tokenize(rows, space["tokenizer"], max_length=length)
            padded = space["DataCollatorWithPadding"](space["tokenizer"], padding="max_length", max_length=length)
            settings = dict(collator=padded, num_train_epochs=1, logging_strategy="no")
            network = space["pretrained"](dtype=dtype)
            space["trainer_for"](network, rows, [watch], **settings, **changes).train()
            if turn == 0:
                peaks[lever] = watch.peak
            else:
                seconds[lever] += watch.steps
    middle = {lever: statistics.median(found) for lever, found in seconds.items()}
    return {lever: {"peak": peaks[lever], "step_s": round(middle[lever], 4)} for lever in levers}, {"steps": seconds}


def peaks_point(model, levers):
    """Predicted peak of a step of 16 rows of 128 tokens with each lever, in bytes, for a CPU."""
    space = lesson.space(NOTEBOOK, model)
    shape = dict(batch=16, length=128, task="SEQ_CLS", device="cpu", dtype="float32")
    config = space["pretrained"]().config
    return {name: memory.predict(config, **shape | space["LEVERS"][name][1]).peak for name in levers}, {}


def fit_point(model, way, batch=8, length=512):
    """Predicted peak and its parts in GiB, for a GPU, and the processor's seconds that the prediction took."""
    started = time.process_time()
    found = memory.predict(SHAPES[model], batch=batch, length=length, **{"dtype": "float32", **WAYS[way]})
    parts = {part: size / 2**30 for part, size in found.split.items()}
    sizes = {"peak_gib": found.peak_gib, "reserved_gib": found.reserved_gib, "parameters": found.total}
    return sizes | {"cpu_s": time.process_time() - started, **parts}, {}


def ladder_point(model, card, batch=8, length=1024):
    """What to change against "out of memory", step by step, from fp32 weights and bf16 autocast."""
    predicted = memory.predict(SHAPES[model], batch=batch, length=length, dtype="float32", autocast="bfloat16")
    steps = memory.ladder(predicted, card)
    return {row["step"]: {key: row[key] for key in ("peak_gib", "saved_gib", "answer")} for row in steps}, {}


def keep(folder, name, run, *given, **point):
    """Run a point and save its record, unless there is one."""
    if (folder / f"{name}.json").exists():
        return
    started = time.process_time()
    found, more = run(*given, **point)
    settings = {**point, **({"model": Path(given[0]).name} if given else {})}
    about = dict(machine=env.machine(), versions=env.versions(), seconds=round(time.process_time() - started))
    record.save(folder, name, settings=settings, metrics=found, **more, **about)
    print(name, about["seconds"], "CPU s", flush=True)


def named(*parts):
    return "-".join(str(part).replace(", ", "-").replace(" ", "-") for part in parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["tiny-encoder"])
    parser.add_argument("--only", nargs="+", choices=["fit", "peaks", "hundred", "cost", "quality"])
    parser.add_argument("--levers", nargs="+", help="left out: all that the notebook names")
    given = parser.parse_args()
    wanted = given.only or ["fit", "peaks", "hundred", "cost", "quality"]
    if "fit" in wanted:
        for name in SHAPES:
            for way in WAYS:
                keep(RESULTS, named("fit", name, way), fit_point, model=name, way=way, batch=8, length=512)
        keep(RESULTS, "ladder-1B", ladder_point, model="1B", card="RTX 4090 (24 GB)", batch=8, length=1024)
    for model in given.models:
        space, folder = lesson.space(NOTEBOOK, model), RESULTS / Path(model).name
        levers, rate = given.levers or list(space["LEVERS"]), space["RATE"]
        for seed in SEEDS["hundred"].get(model, range(3)) if "hundred" in wanted else ():
            keep(folder, f"hundred-{seed}", hundred_point, model, seed=seed)
        if "peaks" in wanted:
            keep(folder, "peaks", peaks_point, model, levers=levers)
        if "cost" in wanted:
            keep(folder, "cost", cost_point, model, levers=levers)
        for seed in SEEDS["levers"] if "quality" in wanted else ():
            for lever in levers:
                for of in SGD if lever == "SGD" else (rate / 2, rate, 2 * rate):
                    point = dict(lever=lever, learning_rate=of, seed=seed)
                    keep(folder, named("lever", lever, f"{of:g}", seed), lever_point, model, **point)


if __name__ == "__main__":
    main()
