"""The recorded runs of notebook 02: before fine-tuning and after it, three rates, and four ways of counting.

    python data/recipes/generation.py tiny-decoder    # 20 minutes of one core
    python data/recipes/generation.py smollm2         # an hour of one core

What a run does is in the cells of the notebook that are tagged `sweep`; they are executed here with the model's name in
the setup cell. A run whose record is there is not run again, so the command goes on where it was broken off. `hits` has
one digit a row (1 = right), so that two runs can be compared row by row.
"""

import argparse
import sys
import time

import lesson

from helpers import env, metrics, record

RESULTS = env.DATA / "results" / "02_generation"
NOTEBOOK = "02_generation"
WAYS = ("the right way", "padding counts", "prompt counts", "end is padding")
TRIED = {"tiny-decoder": (5e-4, 1e-3, 2e-3), "smollm2": ()}  # rates; all other runs have the notebook's
SEEDS = {"tiny-decoder": (0, 1, 2), "smollm2": (0,)}
SIZES = {"tiny-decoder": (800, 300), "smollm2": (64, 20)}  # rows to train on, rows of each part to score
COUNTING = {"tiny-decoder": dict(n_rows=160, n_scored=200), "smollm2": dict(n_rows=32, n_scored=20)}
TESTS = ("test_same", "test_unseen", "test_handwritten")


def scored(space, model, task, parts, n_rows):
    """Exact match and hits of each part, how often the answer contains the reference, and the first ten texts."""
    found, hits, texts = {}, {}, {}
    for part in parts:
        talks = space["talks"][task][part]
        talks = talks.select(range(min(n_rows, len(talks))))
        references, said = space["answers"](talks), space["written"](model, talks)
        right = [metrics.score("exact_match", [one], [other]) for one, other in zip(said, references, strict=True)]
        contained = [other.lower() in one.lower() for one, other in zip(said, references, strict=True)]
        found |= {part: sum(right) / len(right), f"{part}_contained": sum(contained) / len(contained)}
        hits[part] = "".join("01"[int(hit)] for hit in right)
        texts[part] = said[:10]
    return found, {"hits": hits, "texts": texts}


def before_point(model, task, parts, n_rows):
    space = lesson.space(NOTEBOOK, model)
    return scored(space, space["pretrained"](), task, parts, n_rows)


def tuning_point(model, task, learning_rate, seed, epochs, n_train, n_rows, parts):
    """Train on other rows for each seed, and score."""
    space = lesson.space(NOTEBOOK, model)
    network = space["pretrained"](seed)
    train = space["talks"][task]["train"].shuffle(seed=seed).select(range(n_train))
    examples = space["text"].tokenize_chat(train, space["tokenizer"])
    changes = dict(learning_rate=learning_rate, num_train_epochs=epochs, seed=seed, logging_strategy="no")
    space["trainer_for"](network, examples, **changes).train()
    return scored(space, network, task, parts, n_rows)


def counting_point(model, end=None, **point):
    space = lesson.space(NOTEBOOK, model)
    if end:
        space["END"] = space["tokenizer"].convert_tokens_to_ids(end)
    found = space["counting_point"](**point)
    return {key: value for key, value in found.items() if key not in ("texts", "hits")}, {
        "hits": found["hits"],
        "texts": found["texts"][:10],
    }


def keep(model, name, run, **point):
    """Run a point and save its record, unless there is one."""
    folder = RESULTS / model
    if (folder / f"{name}.json").exists():
        return
    started = time.process_time()
    found, more = run(model, **point)
    path = str(lesson.space(NOTEBOOK, model)["path"])
    settings = {**point, "model": model, "weights": "from Q4_1" if path.endswith("from-Q4_1") else "as published"}
    about = dict(machine=env.machine(), versions=env.versions(), cpu_s=round(time.process_time() - started))
    record.save(folder, name, settings=settings, metrics=found, **more, **about)
    print(name, {key: round(value, 2) for key, value in found.items()}, about["cpu_s"], "CPU s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SEEDS)
    parser.add_argument("--only", default="", help="only records whose name begins so")
    options = parser.parse_args()
    model, (n_train, n_rows) = options.model, SIZES[options.model]

    def one(name, run, **point):
        if name.startswith(options.only):
            keep(model, name, run, **point)

    for way in WAYS:
        for seed in SEEDS[model]:
            name = f"counting-{way.replace(' ', '-')}-{seed}"
            one(name, counting_point, way=way, seed=seed, **COUNTING[model])
    for task in ("titles", "questions"):
        one(f"before-{task}", before_point, task=task, parts=TESTS, n_rows=n_rows)
        common = dict(task=task, epochs=2, n_train=n_train, n_rows=n_rows)
        for rate in TRIED[model]:
            one(f"rate-{task}-{rate:g}-0", tuning_point, learning_rate=rate, seed=0, parts=("validation",), **common)
        for seed in SEEDS[model]:
            rate = lesson.space(NOTEBOOK, model)["RATE"]
            one(f"parts-{task}-{seed}", tuning_point, learning_rate=rate, seed=seed, parts=TESTS, **common)


if __name__ == "__main__":
    sys.exit(main())
