"""How sure a score is, whether it is above simple baselines on the same rows, and what looks wrong with a run.

The same file in every project. Each warning is one sentence that names the line of config.yaml to change.
"""

import math

import numpy as np


def ratio(sums):
    """A score that is one sum divided by another, from sums of shape (..., 2); 0 where there is nothing to divide."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-9)


def compare(statistics, score, resamples=1000):
    """The score of each system on the same rows, with 95 % intervals, and the first system's lead over each other one.

    `statistics` has an array (rows, k) for each system, the first of them this model; `score` makes a score of their
    sums. The intervals are a paired bootstrap: each resample draws the same rows for all systems.
    """
    rows = next(iter(statistics.values())).shape[0]
    resamples = resamples if rows <= 20_000 else resamples // 5  # so many rows leave little to chance
    draw, drawn = np.random.default_rng(0), {name: [] for name in statistics}
    for _ in range(resamples // 50):
        counts = draw.multinomial(rows, np.full(rows, 1 / rows), size=50)
        for name, values in statistics.items():
            drawn[name].append(score(counts @ values))
    drawn = {name: np.concatenate(parts) for name, parts in drawn.items()}
    whole = {name: float(score(np.asarray(values.sum(0)).ravel())) for name, values in statistics.items()}
    first, compared = next(iter(statistics)), {}
    for name in statistics:
        low, high = np.percentile(drawn[name], [2.5, 97.5])
        compared[name] = {"score": whole[name], "low": float(low), "high": float(high)}
        if name != first:
            low, high = np.percentile(drawn[first] - drawn[name], [2.5, 97.5])
            compared[name] |= {"lead": whole[first] - whole[name], "lead_low": float(low), "lead_high": float(high)}
    return compared


def points(value, signed=True):
    """A difference of two scores in points, hundredths of a score."""
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def table(compared, metric, part, rows):
    """The comparison as lines of text."""
    lines = [(f"{part}, {rows} rows", f"{metric} [95 % interval]", "this model's lead, in points")]
    for name, one in compared.items():
        lead = f"{points(one['lead'])} [{points(one['lead_low'])}, {points(one['lead_high'])}]" if "lead" in one else ""
        lines.append((name, f"{one['score']:.3f} [{one['low']:.3f}, {one['high']:.3f}]", lead))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


# ---- What looks wrong -----------------------------------------------------------------------------------------------


def effort(config):
    """The settings that make a training do more."""
    training = config["training"]
    length = "max_steps" if training.get("max_steps", -1) > 0 else "num_train_epochs"
    return f"training.learning_rate: {training['learning_rate']:g} or training.{length}: {training.get(length, 3)}"


def more_or_less(config, history, classes):
    """What to do when nothing was learnt: train more; or less fast, if the loss was above that of any guess.

    A loss that stood still says only that the rate is wrong: far too low, or so high that the model broke early.
    """
    losses, rate = [one["loss"] for one in history if "loss" in one], config["training"]["learning_rate"]
    if losses and not max(losses) < 1.5 * max(math.log(classes), 0.5):
        return f"lower training.learning_rate: {rate:g}, to a tenth or less"
    third = len(losses) // 3
    if third > 1 and np.mean(losses[-third:]) > 0.97 * np.mean(losses[-2 * third : -third]):
        stood = f"its training loss stood still at {np.mean(losses[-third:]):.2f}, so training.learning_rate: {rate:g}"
        return f"{stood} is too high or too low; `python train.py --find` tries both"
    return f"raise {effort(config)}"


def of_the_baselines(config, compared, metric, trivial):
    """Whether the model is below a baseline, or not shown to be above one that the training should leave behind.

    `compared` has the comparison of each part; `trivial` are the names of the baselines that read or learn nothing.
    """
    below, level = [], []
    for name in list(next(iter(compared.values())))[1:]:
        said = " and ".join(
            f"{next(iter(one.values()))['score']:.3f} against {one[name]['score']:.3f} on the {part} rows"
            for part, one in compared.items()
            if one[name]["lead"] < 0
        )
        if said:
            below.append(f"{name} ({said})")
        elif name in trivial and unclear(compared, name):
            leads = ", ".join(f"{part} {points(one[name]['lead'])} points" for part, one in compared.items())
            level.append(f"{name} ({leads})")
    warnings = []
    if below:
        warnings.append(
            f"{metric} is below a baseline: {'; '.join(below)}. Raise {effort(config)}, or let "
            "`python train.py --find` try some rates."
        )
    if level and not below:
        warnings.append(
            f"{metric} is not shown to be above a baseline: {'; '.join(level)}. Raise {effort(config)}, or get more "
            "rows."
        )
    return warnings


def unclear(compared, name):
    """Whether the leads over a baseline, on all parts together, may be chance."""
    leads = [(one[name]["lead"], (one[name]["lead_high"] - one[name]["lead_low"]) / 3.92) for one in compared.values()]
    return sum(lead / max(error, 1e-3) for lead, error in leads) / len(leads) ** 0.5 < 1.96


def unrelated(what):
    """What to say when nothing that reads the training rows is above a baseline that reads nothing."""
    return (
        f"The {what} look unrelated to the texts, as if shuffled or shifted by a row: neither this model nor counting "
        "words learns them. Compare some rows of data.train with where they came from; no other setting helps."
    )


def of_the_curve(config, history, metric, rows):
    """What the losses and scores of the run's evaluations show; `rows` is the number of validation rows."""
    training, warnings = config["training"], []
    losses = [one["loss"] for one in history if "loss" in one]
    bad = [one for one in history if "loss" in one and not math.isfinite(one["loss"])]
    if bad or (losses and losses[-1] > 1.2 * max(losses[0], 0.01)):
        what = "is not a number any more" if bad else f"rose from {losses[0]:.2f} to {losses[-1]:.2f}"
        return [
            f"The training loss {what}: lower training.learning_rate: {training['learning_rate']:g}, to a third or "
            "a tenth."
        ]
    evaluations = [one for one in history if "eval_loss" in one]
    if len(evaluations) < 2:
        return []
    losses = [one["eval_loss"] for one in evaluations]
    scores = [one.get(f"eval_{metric}", -one["eval_loss"]) for one in evaluations]
    epochs = effort(config).partition(" or ")[2]
    if len(scores) > 2 and len(set(scores)) == 1 and scores[0] < 0.999:
        warnings.append(
            f"All {len(scores)} evaluations score the same, {metric} {scores[0]:.3f}, so nothing changed that counts: "
            f"let `python train.py --find` try other values of training.learning_rate: {training['learning_rate']:g}."
        )
    lowest = int(np.argmin(losses))
    fell, gained = losses[-2] - losses[-1], scores[-1] - max(scores[:-1])
    enough = max(0.01, 2.5 / rows) if f"eval_{metric}" in evaluations[0] else 0.03 * losses[-1]
    if lowest == len(losses) - 1 and fell > 0.03 * losses[-1] and gained > enough:
        warnings.append(
            f"The validation loss still fell at the end, from {losses[-2]:.3f} to {losses[-1]:.3f}, and the score rose "
            f"with it: raise {epochs}."
        )
    rose = losses[-1] > 1.5 * losses[lowest] and losses[-1] - losses[lowest] > 0.1
    if rose and scores[-1] <= scores[lowest] + 0.01:
        warnings.append(
            f"It overfits: after evaluation {lowest + 1} of {len(losses)} the validation loss rose from "
            f"{losses[lowest]:.2f} to {losses[-1]:.2f}, and the score did not: lower {epochs}, or set "
            "training.early_stopping_patience: 2."
        )
    return warnings


def of_the_parts(compared):
    """When the test rows are much harder than the validation rows: more than chance and choosing explain."""
    validation, test = (next(iter(compared[part].values())) for part in ("validation", "test"))
    gap = validation["score"] - test["score"]
    wide = math.hypot(validation["high"] - validation["low"], test["high"] - test["low"]) / 2  # of the difference
    # Far more than chance, and than choosing the best of some evaluations: the sample of 60 rows reached 2.17 once.
    if gap > 0.1 and gap > 2.2 * wide:
        return [
            f"The test score, {test['score']:.3f}, is far below the validation rows', {validation['score']:.3f}: "
            "data.test is of another kind than data.train. Train on rows of that kind, and validate on some of them."
        ]
    return []


def of_few_rows(rows):
    """When validation or test have so few rows that a score says next to nothing."""
    few = [f"data.{part} has {rows[part]}" for part in ("validation", "test") if rows[part] < 20]
    if not few:
        return []
    return [f"{' and '.join(few)} rows, so one row more or less right changes the score a lot: label more of them."]


def of_the_cut(config, cut, rows, most, remedy):
    """When many rows are longer than the model is given."""
    length = config["data"]["max_length"]
    if cut <= 0.05 * rows:
        return []
    if length < most:
        remedy = f"raise data.max_length: {length}, up to {most}{remedy and f', or set {remedy}'}"
    elif remedy:
        remedy = f"set {remedy}"
    else:
        remedy = f"data.max_length: {length} is all that this model reads: split them, or take another model"
    return [f"{cut} of {rows} rows to train on ({cut / rows:.0%}) are longer than data.max_length: {remedy}."]
