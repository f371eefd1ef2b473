"""The recorded runs of notebook 10: a start from two writers, then comparisons (DPO) against more fine-tuning.

    python data/recipes/preferences.py tiny-decoder    # about six minutes of one core
    python data/recipes/preferences.py smollm2         # hours of one core; not run so far

What a run does is in the cells of the notebook that are tagged `sweep`; they are executed here with the model's name in
the setup cell. A run whose record is there is not run again, so the command goes on where it was broken off. Rates
and beta are tried on validation rows with the first seed, as often for the control as for DPO; each test row is
answered once by each start and each final run. `hits` has one digit a row (1 = right), so that runs can be paired.
"""

import argparse
import sys
import time
from functools import cache

import lesson

from helpers import env, record

RESULTS = env.DATA / "results" / "10_trl_and_preferences"
NOTEBOOK = "10_trl_and_preferences"
SEEDS = {"tiny-decoder": (0, 1, 2), "smollm2": (0,)}
SIZES = {"tiny-decoder": (60, 150), "smollm2": (20, 40)}  # rows scored in a try, rows of the test
N_QUESTIONS = 100
TRIES = {
    "dpo": [dict(learning_rate=rate, beta=beta) for rate in (1e-4, 2e-4, 6e-4) for beta in (0.1, 0.5)],
    "more sft": [dict(learning_rate=rate) for rate in (1e-4, 2e-4, 6e-4, 1e-3, 2e-3, 4e-3)],
}


def digits(hits):
    return "".join(map(str, hits))


@cache
def start_of(model, seed):
    return lesson.space(NOTEBOOK, model)["started"](seed)


def start_point(model, seed, n_rows):
    """The start itself; and, with the first seed, the pre-trained model."""
    space = lesson.space(NOTEBOOK, model)
    network = space["pretrained"](start_of(model, seed))
    found, hits, said = space["measured"](network, network, "test_same", n_rows)
    forgets = space["of_questions"](network, N_QUESTIONS)
    return found | {"questions": sum(forgets) / len(forgets)}, dict(hits=digits(hits), texts=said[:10])


def base_point(model, seed, n_rows):
    space = lesson.space(NOTEBOOK, model)
    network = space["pretrained"]()
    _, hits, said = space["measured"](network, network, "test_same", n_rows)
    forgets = space["of_questions"](network, N_QUESTIONS)
    found = {"right": sum(hits) / len(hits), "questions": sum(forgets) / len(forgets)}
    return found, dict(hits=digits(hits), texts=said[:10])


def tuned(model, way, seed, **settings):
    """The start after one epoch of comparisons, or of the preferred answers alone."""
    space = lesson.space(NOTEBOOK, model)
    folder, rows = start_of(model, seed), space["rows_of"](seed)[1]
    start, network = space["pretrained"](folder), space["pretrained"](folder, seed)
    if way == "dpo":
        trainer = space["dpo"](network, start, space["pairs_of"](rows), seed=seed, **settings)
    else:
        trainer = space["sft"](network, space["preferred"](rows), seed=seed, **settings)
    return space, trainer, start


def try_point(model, way, seed, n_rows, **settings):
    space, trainer, _ = tuned(model, way, seed, **settings)
    hits, said = space["right"](trainer.model, space["reviews"]["validation"].select(range(n_rows)))
    return {"right": sum(hits) / len(hits)}, dict(hits=digits(hits), texts=said[:10])


def final_point(model, way, seed, n_rows, **settings):
    space, trainer, start = tuned(model, way, seed, **settings)
    found, hits, said = space["measured"](trainer.model, start, "test_same", n_rows)
    forgets = space["of_questions"](trainer.model, N_QUESTIONS)
    found |= {"questions": sum(forgets) / len(forgets), "steps": trainer.state.global_step}
    kept = ("step", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins")
    curve = [{key: row[key] for key in kept if key in row} for row in trainer.state.log_history if "loss" in row]
    return found, dict(hits=digits(hits), questions=digits(forgets), texts=said[:10], curve=curve)


def keep(model, name, run, **point):
    """Run a point and save its record, unless there is one."""
    folder = RESULTS / model
    if (folder / f"{name}.json").exists():
        return
    started = time.process_time()
    found, more = run(model, **point)
    about = dict(machine=env.machine(), versions=env.versions((*env.LIBRARIES, "trl")))
    about |= dict(cpu_s=round(time.process_time() - started))
    record.save(folder, name, settings={**point, "model": model}, metrics=found, **more, **about)
    print(name, {key: round(value, 2) for key, value in found.items()}, about["cpu_s"], "CPU s", flush=True)


def chosen(model, way):
    """The settings of the try with the most right titles on validation rows; of equals the first."""
    tries = [run for run in record.load(RESULTS / model) if run["name"].startswith(f"try-{way.replace(' ', '-')}-")]
    best = max(run["metrics"]["right"] for run in tries)
    order = {name_of(way, settings): settings for settings in TRIES[way]}
    by_name = {run["name"]: run for run in tries}
    return next(settings for name, settings in order.items() if by_name[name]["metrics"]["right"] == best)


def name_of(way, settings):
    return f"try-{way.replace(' ', '-')}-" + "-".join(f"{value:g}" for value in settings.values())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SEEDS)
    parser.add_argument("--only", default="", help="only records whose name begins so")
    options = parser.parse_args(arguments)
    model, (n_few, n_rows) = options.model, SIZES[options.model]

    def one(name, run, **point):
        if name.startswith(options.only):
            keep(model, name, run, **point)

    one("base", base_point, seed=0, n_rows=n_rows)
    for way, tries in TRIES.items():
        for settings in tries:
            one(name_of(way, settings), try_point, way=way, seed=0, n_rows=n_few, **settings)
    for seed in SEEDS[model]:
        one(f"start-{seed}", start_point, seed=seed, n_rows=n_rows)
        for way in TRIES:
            name = f"final-{way.replace(' ', '-')}-{seed}"
            if name.startswith(options.only):
                one(name, final_point, way=way, seed=seed, n_rows=n_rows, **chosen(model, way))


if __name__ == "__main__":
    sys.exit(main())
