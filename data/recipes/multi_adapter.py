"""The recorded runs of notebooks 06 and 06b: adapters for each skill, what they score on every task, combinations.

    python data/recipes/multi_adapter.py tiny-decoder    # an hour of one core
    python data/recipes/multi_adapter.py smollm2         # the same, with fewer rows and one seed

How a training goes is in the cells of notebook 06 that are tagged `sweep`; they are executed here with the model's name
in the setup cell. A run whose record (or adapter) is there is not run again, so the command goes on where it was broken
off. The adapters of tiny-decoder, seed 0, are those of the repository (data/models/adapters); others are kept in
runs/06_adapters, which is not committed. `hits` has one digit a row (1 = right).
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import lesson
import numpy as np

from helpers import env, generate, metrics, record

RESULTS = env.DATA / "results" / "06_multi_adapter"
NOTEBOOK = "06_multi_adapter"
SKILLS = ("intent", "questions", "titles", "rewrite")
SEEDS = {"tiny-decoder": (0, 1, 2), "smollm2": (0,)}
RATES = {"tiny-decoder": (2e-3, 4e-3), "smollm2": ()}  # tried on seed 0; all other runs have the notebook's
SIZES = {"tiny-decoder": (None, 100), "smollm2": (48, 20)}  # rows to train on (None: the notebook's), rows to score
METHODS = {  # peft's name: the densities to try, where it drops numbers
    "linear": [None],
    "cat": [None],
    "svd": [None],
    "ties": [0.2, 0.5],
    "dare_ties": [0.2, 0.5],
}
WEIGHTS = (0.2, 0.4, 0.7, 1.0, 1.5, 2.0)  # peft's guide advises weights above 1
PAIR_WEIGHT = 0.7  # for cat; not searched


def home(model, task, seed):
    if (model, seed) == ("tiny-decoder", 0):
        return env.DATA / "models" / "adapters" / task
    return env.REPOSITORY / "runs" / "06_adapters" / model / str(seed) / task


def scored(space, network, task, part, n_rows):
    """Exact match on a task, and a digit for each row."""
    talks = space["talks"][task][part]["messages"][:n_rows]
    said = generate.texts(network, space["tokenizer"], talks, batch_size=50, max_new_tokens=32)
    right = [metrics.score("exact_match", [one], [talk[-1]["content"]]) for one, talk in zip(said, talks, strict=True)]
    return sum(right) / len(right), "".join("01"[int(hit)] for hit in right)


def on_every_task(space, network, part, n_rows, tasks=SKILLS):
    found = {task: scored(space, network, task, part, n_rows) for task in tasks}
    return {task: one for task, (one, _) in found.items()}, {task: hits for task, (_, hits) in found.items()}


def adapter(model, task, seed):
    """A trained model whose adapter is stored, with the manifest that the notebook's Round 7 reads."""
    space, folder, (n_rows, _) = lesson.space(NOTEBOOK, model), home(model, task, seed), SIZES[model]
    network = space["trained"](task, seed, n_rows)
    network.peft_config["default"].base_model_name_or_path = Path(space["path"]).name
    network.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    signing = {"json": json, "Path": Path, "torch": space["torch"]}
    for cell in lesson.cells(NOTEBOOK):
        if "def fingerprint(" in cell.source or "def sign(" in cell.source:
            exec(cell.source, signing)
    signing["sign"](folder, network, version=1)
    return network


def served(model, seed, tasks):
    """One base with the stored adapters; those that are not there are trained."""
    from peft import PeftModel

    for task in tasks:
        if not home(model, task, seed).exists():
            adapter(model, task, seed)
    network = PeftModel.from_pretrained(
        lesson.space(NOTEBOOK, model)["pretrained"](), home(model, tasks[0], seed), adapter_name=tasks[0]
    )
    for task in tasks[1:]:
        network.load_adapter(home(model, task, seed), task)
    return network.eval()


def rate_point(model, task, seed, learning_rate):
    n_rows, n_scored = SIZES[model]
    found = lesson.space(NOTEBOOK, model)["sweep_point"](task, seed, learning_rate, n_rows, n_scored)
    return {"validation": found["validation"]}, {}


def train_point(model, task, seed, learning_rate):
    """A training, its adapter stored, and its scores; of "all" the mean over the skills."""
    space, (_, n_scored) = lesson.space(NOTEBOOK, model), SIZES[model]
    network, found, hits = adapter(model, task, seed), {}, {}
    for part in ("validation", "test_same"):
        own = SKILLS if task == "all" else (task,)
        each, hits[part] = on_every_task(space, network, part, n_scored, own)
        found[part] = float(np.mean(list(each.values())))
    return found, {"hits": hits}


def matrix_point(model, seed):
    """Every adapter, and none, on every task."""
    space, network, found, hits = lesson.space(NOTEBOOK, model), served(model, seed, SKILLS), {}, {}
    for name in SKILLS:
        network.set_adapter(name)
        found[name], hits[name] = on_every_task(space, network, "test_same", SIZES[model][1])
    with network.disable_adapter():
        found["no adapter"], hits["no adapter"] = on_every_task(space, network, "test_same", SIZES[model][1])
    return found, {"hits": hits}


def combined(space, network, method, weights, density, part, n_rows, tasks=SKILLS):
    """The scores of a combination; it is deleted after that."""
    space["set_seed"](0)  # DARE draws the numbers that it drops
    more = {} if density is None else {"density": density}
    network.add_weighted_adapter(list(tasks), list(weights), "combined", combination_type=method, **more)
    network.set_adapter("combined")
    found = on_every_task(space, network, part, n_rows, tasks)
    network.set_adapter(tasks[0])
    network.delete_adapter("combined")
    return found


def combine_point(model, method, seed):
    """Weights chosen by the mean on 40 validation rows a task, then one score on test rows; the curve has all tries."""
    space, network, curve = lesson.space(NOTEBOOK, model), served(model, seed, SKILLS), []

    def attempt(weights, density):
        found, _ = combined(space, network, method, weights, density, "validation", 40)
        curve.append({"weights": weights, "density": density, "mean": float(np.mean(list(found.values()))), **found})

    for density, weight in itertools.product(METHODS[method], WEIGHTS):
        attempt([weight] * len(SKILLS), density)
    for number in range(len(SKILLS)):  # then more of one skill at a time
        best = max(curve, key=lambda row: row["mean"])
        attempt([w * 1.5 if i == number else w for i, w in enumerate(best["weights"])], best["density"])
    best = max(curve, key=lambda row: row["mean"])
    found, hits = combined(space, network, method, best["weights"], best["density"], "test_same", SIZES[model][1])
    return found, {"hits": hits, "curve": curve, "chosen": {key: best[key] for key in ("weights", "density")}}


def pairs_point(model, seed):
    """Each pair of skills by cat, on both its tasks."""
    space, network, found = lesson.space(NOTEBOOK, model), served(model, seed, SKILLS), {}
    for part in ("validation", "test_same"):
        found[part] = {
            " + ".join(pair): combined(space, network, "cat", [PAIR_WEIGHT] * 2, None, part, SIZES[model][1], pair)[0]
            for pair in itertools.combinations(SKILLS, 2)
        }
    return found, {}


def keep(model, name, run, **point):
    """Run a point and save its record, unless there is one."""
    if (RESULTS / model / f"{name}.json").exists():
        return
    started = time.process_time()
    found, more = run(model, **point)
    path = str(lesson.space(NOTEBOOK, model)["path"])
    settings = {**point, "model": model, "weights": "from Q4_1" if path.endswith("from-Q4_1") else "as published"}
    settings |= more.pop("chosen", {})
    settings |= {"n_train": SIZES[model][0]} if SIZES[model][0] else {}
    about = dict(machine=env.machine(), versions=env.versions(), seconds=time.process_time() - started)
    record.save(RESULTS / model, name, settings=settings, metrics=found, **more, **about)
    print(name, f"{about['seconds']:.0f} CPU s", flush=True)


def points(model):
    """(name, function, its arguments) of all records."""
    seeds, rate = SEEDS[model], lesson.space(NOTEBOOK, model)["RATE"]
    for task, tried in itertools.product((*SKILLS, "all"), RATES[model]):
        yield f"rate-{task}-{tried:g}", rate_point, dict(task=task, seed=0, learning_rate=tried)
    for seed, task in itertools.product(seeds, (*SKILLS, "all") if model == "tiny-decoder" else SKILLS):
        yield f"train-{task}-{seed}", train_point, dict(task=task, seed=seed, learning_rate=rate)
    for seed in seeds:
        yield f"matrix-{seed}", matrix_point, dict(seed=seed)
        yield f"pairs-{seed}", pairs_point, dict(seed=seed)
        for method in METHODS if model == "tiny-decoder" else ():
            yield f"combine-{method}-{seed}", combine_point, dict(method=method, seed=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SEEDS)
    parser.add_argument("--only", nargs="*", default=[""], help="only records whose name begins so, in this order")
    options = parser.parse_args()
    for start in options.only:
        for name, run, point in points(options.model):
            if name.startswith(start):
                keep(options.model, name, run, **point)


if __name__ == "__main__":
    sys.exit(main())
