"""Charts for the notebooks: numbers and an `ax` go in, the `ax` comes out, and you can go on drawing on it.

Every chart takes `title`: say there what the chart shows, not what it is. Without an `ax` you get a new figure of the
width of a notebook column. A colour has one meaning everywhere (`COLOURS`); the palette (Okabe and Ito's, one of Tol's,
two greys) can be told apart by colour-blind readers. End a cell with `;` to hide the text of the `ax`.
"""

import base64
import io
import math
from collections import Counter

COLOURS = {
    "weights": "#0072B2",
    "gradients": "#E69F00",
    "optimizer": "#009E73",
    "activations": "#D55E00",
    "temporaries": "#CC79A7",
    "train": "#56B4E9",
    "validation": "#333333",
    "test": "#882255",
    "limit": "#767676",  # chance, device capacity, longest input: a dashed line
}
# For things without a meaning of their own: the runs, classes or models of one chart, in this order.
CLASSES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#882255")
LABELS = {"loss": "loss (nats)", "step": "optimizer step", "accuracy": "accuracy"}
WIDTH, HEIGHT, DPI = 7, 3.5, 100  # inches, inches, dots per inch


def learning_curves(curves, ax=None, *, title=None, x="step", y="loss"):
    """Training and evaluation values over the steps, for one run or several.

    `curves` is one list of dicts, such as `trainer.state.log_history` or a record's "curve", or a dict of them by name.
    `y="accuracy"` draws `eval_accuracy`. One run: training and validation in their colours. Several: a colour for each
    run, training dotted, evaluation solid. A value that is null or not finite leaves a gap.

    >>> ax = learning_curves([{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.6}, {"step": 20, "eval_loss": 0.7}])
    >>> [line.get_label() for line in ax.get_lines()]
    ['training', 'validation']

    Taught in notebooks/00_start_here.ipynb, "What a training step does".
    """
    curves = curves if isinstance(curves, dict) else {"": curves}
    ax, highest = _axes(ax), 0.0
    for i, (name, curve) in enumerate(curves.items()):
        evaluated = any(f"eval_{y}" in row for row in curve)
        for key, part, style in ((y, "training", ":" if name else "-"), (f"eval_{y}", "validation", "-")):
            points = [(row[x], _finite(row[key])) for row in curve if key in row and x in row]
            if not points:
                continue
            colour = CLASSES[i % len(CLASSES)] if name else COLOURS["train" if part == "training" else "validation"]
            label = part if not name else name if part == "validation" or not evaluated else None
            marker = "o" if len(points) < 25 and (part == "validation" or len(points) == 1) else None
            look = dict(color=colour, label=label, marker=marker, markersize=4, linewidth=1.8)
            ax.plot(*zip(*points, strict=True), style, **look)
            highest = max(highest, *(value for _, value in points if value == value), 0.0)
    if not ax.get_lines():
        raise ValueError(f'no curve has "{y}" or "eval_{y}" together with "{x}". Pass trainer.state.log_history.')
    ax.set_ylim(0, 1.0 if y != "loss" and highest <= 1 else None)
    ax.set_xlim(left=0)
    several = len(curves) > 1 and any(line.get_linestyle() == ":" for line in ax.get_lines())
    if len(ax.get_lines()) > 1 or "" not in curves:
        _legend(ax)
    ylabel = LABELS.get(y, y) + (", training dotted" if several else "")
    return _finish(ax, title, LABELS.get(x, x), ylabel, grid="both")


def confusion(counts, names, ax=None, *, title=None):
    """How often each class (row) was taken for each class (column): the count and its share of the row.

    `counts` is a matrix with the true classes as rows, or the tuple `(predictions, references)` of class ids or names.

    >>> ax = confusion(([0, 1, 1], [0, 1, 0]), ["negative", "positive"])
    >>> [text.get_text() for text in ax.texts]
    ['1\\n50%', '1\\n50%', '', '1\\n100%']

    Taught in notebooks/01_classification.ipynb, "Where is it wrong?".
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    names = list(names)
    counts, n = _matrix(counts, names), len(names)
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    ax = _axes(ax, (min(WIDTH + 2, 3.4 + 0.62 * n), min(WIDTH, 2.0 + 0.46 * n)))
    shade = LinearSegmentedColormap.from_list("share", ["#FFFFFF", "#9ECAE1", "#08306B"])
    cells = dict(cmap=shade, vmin=0, vmax=1, edgecolors="#DDDDDD", linewidth=0.8)
    ax.pcolormesh(range(n), range(n), shares, **cells)
    ax.invert_yaxis()
    for (i, j), cell in np.ndenumerate(counts):
        text = f"{cell:,}\n{shares[i, j]:.0%}" if cell else ""
        colour = "white" if shares[i, j] > 0.6 else "black"
        ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=10 if n <= 6 else 8, linespacing=1.05)
    slanted = n > 4 or max(len(name) for name in names) > 12
    turned = dict(rotation=35, ha="right") if slanted else dict(rotation=0, ha="center")
    ax.set_xticks(range(n), names, rotation_mode="anchor", **turned)
    ax.set_yticks(range(n), [f"{name} ({total:,})" for name, total in zip(names, totals, strict=True)])
    ax.tick_params(length=0)
    _finish(ax, title, "predicted class (% of the true class)", "true class (rows)")
    ax.spines[:].set_visible(False)
    return ax


def scores(rows, ax=None, *, title=None, xlabel="accuracy", chance=None):
    """Values with their intervals, one line each; in groups when `rows` is a dict of group and rows.

    A row is (name, value), (name, value, low, high), or (name, interval). `chance` is a dashed line.

    >>> ax = scores([("majority", 0.34), ("fine-tuned", 0.82, 0.79, 0.85)], chance=1 / 3)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['majority', 'fine-tuned']

    Taught in notebooks/01_classification.ipynb, "Where this leads".
    """
    groups = rows if isinstance(rows, dict) else {None: rows}
    groups = {group: [_row(row) for row in members] for group, members in groups.items()}
    if not any(groups.values()):
        raise ValueError("no rows to draw. Pass (name, value, low, high) for each line.")
    n_lines = sum(len(members) for members in groups.values()) + 1.3 * sum(group is not None for group in groups)
    ax = _axes(ax, (WIDTH, 1.1 + 0.32 * n_lines))
    names = list(dict.fromkeys(row[0] for members in groups.values() for row in members))
    place, ticks = 0.0, {}
    for group, members in groups.items():
        if group is not None:
            place += 0.3 if place else 0
            at = dict(transform=ax.get_yaxis_transform(), va="center", fontsize=10)
            ax.text(0, place, f" {group}", fontweight="bold", **at)
            place += 1
        for row in members:
            colour = COLOURS["test"] if group is None else CLASSES[names.index(row[0]) % len(CLASSES)]
            _score(ax, place, row, colour)
            ticks[place] = row[0]
            place += 1
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set_ylim(place + (0.2 if chance is not None else -0.4), -0.6)
    every = [x for members in groups.values() for row in members for x in row[1:] if x is not None]
    ax.set_xlim(min(0, *every), 1 if 0.25 < max(every) <= 1 else max(every) * 1.1 or 1)
    if chance is not None:
        ax.axvline(chance, linestyle="--", color=COLOURS["limit"], linewidth=1.2, zorder=0)
        ax.text(chance, place - 0.15, f" chance {chance:.2f}", va="center", fontsize=9, color=COLOURS["limit"])
    return _finish(ax, title, xlabel, None, grid="x")


def _score(ax, place, row, colour):
    """One line of `scores`: the interval, the value, and the value as text at the right."""
    _, value, low, high = row
    if low is not None:
        ax.plot([low, high], [place, place], color=colour, linewidth=2.5, alpha=0.45, solid_capstyle="butt")
    ax.plot([value], [place], "o", color=colour, markersize=7)
    text = f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    ax.text(1.01, place, text, transform=ax.get_yaxis_transform(), va="center", fontsize=10)


def show(ax, alt):
    """Shows the figure of an `ax` in the notebook, with `alt`: what it says, for readers who cannot see it.

    `alt` is kept where a web page or a screen reader finds it: beside the picture, and as the output's plain text.

    >>> show(scores([("fine-tuned", 0.82)]), "Accuracy after fine-tuning: 0.82")  # doctest: +ELLIPSIS
    {'image/png': '...', 'text/plain': 'Accuracy after fine-tuning: 0.82'}

    Taught in notebooks/00_start_here.ipynb, "What a training step does".
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    picture = io.BytesIO()
    ax.figure.savefig(picture, format="png", dpi=DPI)
    plt.close(ax.figure)  # or the notebook shows it once more
    kinds = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": alt}
    display(kinds, raw=True, metadata={"image/png": {"alt": alt}})


def memory(bars, ax=None, *, title=None, capacity=None, source=None):
    """Peak memory by part, one stacked bar for each prediction (hollow) and each measurement (solid).

    `bars` is a dict of name and `{"predicted": split, "measured": split}`, either may be missing; a split is a dict of
    part and bytes. `capacity` is the device in GiB, a dashed line. `source` says what was measured, such as
    `measured.source`.

    >>> ax = memory({"full": {"predicted": {"weights": 2**30, "gradients": 2**30}, "measured": {"weights": 2**30}}})
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['full, predicted', 'full, measured']

    Taught in notebooks/03_full_fine_tuning.ipynb, "Round 2: predicted against measured".
    """
    kinds = ("predicted", "measured")
    rows = [(name, kind, pair[kind]) for name, pair in bars.items() for kind in kinds if kind in pair]
    if not rows:
        raise ValueError('no bars to draw. Pass {"full": {"predicted": split, "measured": split}}.')
    unknown = {part for _, _, split in rows for part in split} - set(PARTS)
    if unknown:
        raise ValueError(f"no part of memory is called {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}.")
    used = [part for part in PARTS if any(split.get(part) for _, _, split in rows)]
    legend = 0.4 + 0.6 * -(-len(used) // 2)  # room below the bars, in bars
    ax = _axes(ax, (WIDTH, 1.5 + 0.4 * (len(rows) + legend)))
    totals = [sum(split.values()) for _, _, split in rows]
    unit, size = _unit(max(totals))
    place, places = 0.0, []
    for i, (name, kind, split) in enumerate(rows):
        place += 0.35 * (i > 0 and name != rows[i - 1][0])
        left = 0.0
        for part, (colour, hatch) in PARTS.items():
            width, solid = split.get(part, 0) / size, kind == "measured"
            fill, edge = (colour, "white") if solid else ("white", colour)
            ax.barh(place, width, 0.75, left, color=fill, edgecolor=edge, hatch=hatch, linewidth=0.5 if solid else 1.8)
            left += width
        ax.text(left, place, f" {left:.{2 if unit == 'GiB' else 1}f}", va="center", fontsize=10)
        places.append(place)
        place += 1
    ax.set_yticks(places, [f"{name}, {kind}" for name, kind, _ in rows])
    ax.set_ylim(place - 0.5 + legend, -0.9)
    ax.set_xlim(0, 1.14 * max(*totals, (capacity or 0) * GIB) / size)
    _capacity(ax, capacity, size, upright=True)
    handles = [_patch(PARTS[part][0], part, PARTS[part][1]) for part in used]
    ax.legend(handles=handles, fontsize=9, ncols=2, loc="lower left", edgecolor="none")
    kinds = {kind for _, kind, _ in rows}
    how = " (hollow: predicted, solid: measured)" if len(kinds) == 2 else ""
    return _finish(ax, title, f"peak memory ({unit}){how}" + (f"\n{source}" if source else ""), None, grid="x")


def timeline(points, ax=None, *, title=None, predicted=None, capacity=None, source=None):
    """The highest bytes of each forward pass, backward pass and optimizer step, over the steps.

    `points` is a list of dicts of step, phase and bytes, as `measured.timeline`; `predicted` another one, drawn hollow.
    `capacity` is the device in GiB, a dashed line.

    >>> points = [{"step": 1, "phase": phase, "bytes": 2**30} for phase in ("forward", "backward", "step")]
    >>> ax = timeline(points)
    >>> len(ax.patches), ax.get_ylabel()
    (3, 'memory (GiB)')

    Taught in notebooks/03_full_fine_tuning.ipynb, "Round 2: predicted against measured".
    """
    if not points:
        raise ValueError("no points to draw. Pass the timeline of a measurement or a prediction.")
    ax, every = _axes(ax), [*points, *(predicted or ())]
    unit, size = _unit(max(point["bytes"] for point in every))
    for bars, outlined in ((points, False), (predicted or (), True)):
        n_phases, drawn = Counter(bar["step"] for bar in bars), Counter()
        for bar in bars:  # those of a step share the place between it and the step before
            step, width = bar["step"], 1 / n_phases[bar["step"]]
            colour = "none" if outlined else COLOURS[PHASES[bar["phase"]]]
            look = dict(facecolor=colour, edgecolor=COLOURS["validation"], linewidth=1.2 if outlined else 0)
            ax.bar(step - 1 + drawn[step] * width, bar["bytes"] / size, width, align="edge", **look)
            drawn[step] += 1
    ax.set_ylim(0, 1.25 * max(*(point["bytes"] for point in every), (capacity or 0) * GIB) / size)
    _capacity(ax, capacity, size)
    phases = dict.fromkeys(point["phase"] for point in points)
    handles = [_patch(COLOURS[PHASES[phase]], phase) for phase in phases]
    ax.legend(handles=handles, fontsize=9, ncols=4, loc="upper left", edgecolor="none", framealpha=0.85)
    how = " (outlined: predicted)" if predicted else ""
    steps = sorted({point["step"] for point in points})
    if len(steps) <= 12:
        ax.set_xticks([step - 0.5 for step in steps], steps)
    return _finish(ax, title, "optimizer step" + (f"\n{source}" if source else ""), f"memory ({unit}){how}", grid="y")


def sweep(predicted, ax=None, *, title=None, x="batch", measured=None, capacity=None):
    """Peak memory over the batch or the length: predictions as a line with hollow points, measurements as solid ones.

    `predicted` and `measured` are dicts of x and bytes, or dicts of such dicts by name. `capacity` is in GiB.

    >>> ax = sweep({1: 2**30, 2: 2**30 * 3 // 2}, capacity=16)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('batch (rows)', 'peak memory (GiB)')

    Taught in notebooks/04_lora.ipynb, "Round 4: does it need less memory?".
    """
    measured = measured or {}
    if not any(isinstance(value, dict) for value in predicted.values()):  # one line, without a name
        predicted, measured = {"": predicted}, {"": measured}
    every = [size for values in (*predicted.values(), *measured.values()) for size in values.values()]
    if not every:
        raise ValueError("no values to draw. Pass {1: bytes, 2: bytes, 4: bytes}.")
    ax, names = _axes(ax), list(dict.fromkeys([*predicted, *measured]))
    unit, size = _unit(max(every))
    for i, name in enumerate(names):
        colour = CLASSES[i % len(CLASSES)]
        for values, style, fill in ((predicted.get(name), "-o", "white"), (measured.get(name), "o", colour)):
            if values:
                line = dict(color=colour, markerfacecolor=fill, markersize=7, linewidth=1.5)
                label = name if name and (style == "-o" or name not in predicted) else None
                ax.plot(sorted(values), [values[at] / size for at in sorted(values)], style, label=label, **line)
    ax.set_ylim(0, 1.1 * max(*every, (capacity or 0) * GIB) / size)
    ax.set_xlim(left=0)
    _capacity(ax, capacity, size)
    if names != [""]:
        _legend(ax)
    how = " (hollow: predicted, solid: measured)" if any(measured.values()) else ""
    xlabel = {"batch": "batch (rows)", "length": "length (tokens)"}.get(x, x)
    return _finish(ax, title, xlabel + how, f"peak memory ({unit})", grid="both")


def against(published, ax=None, *, title=None, percent=2):
    """Predicted against published peaks in GiB, one dot a run, and the band of so many percent around equal.

    `published` is a dict of pairs (published, predicted) by source.

    >>> ax = against({"QLoRA on a T4": [(1.8, 1.78), (5.9, 6.0)]})
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('published (GiB)', 'predicted (GiB)')
    """
    pairs = [pair for found in published.values() for pair in found]
    if not pairs:
        raise ValueError('no runs to draw. Pass {"source": [(published GiB, predicted GiB), ...]}.')
    ax, ends = _axes(ax), [0.9 * min(map(min, pairs)), 1.1 * max(map(max, pairs))]
    low, high = ([end * (1 + sign * percent / 100) for end in ends] for sign in (-1, 1))
    ax.fill_between(ends, low, high, color=COLOURS["limit"], alpha=0.2, label=f"within {percent} %")
    for colour, (name, found) in zip(CLASSES, published.items(), strict=False):
        ax.plot(*zip(*found, strict=True), "o", color=colour, markerfacecolor="white", label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    _legend(ax)
    return _finish(ax, title, "published (GiB)", "predicted (GiB)", grid="both")


# ---- What the charts share ------------------------------------------------------------------------------

GIB = 2**30
PARTS = {  # of memory, in this order: colour and hatch; what belongs to another part has its colour, hatched
    "weights": (COLOURS["weights"], None),
    "quantisation constants": (COLOURS["weights"], "////"),
    "gradients": (COLOURS["gradients"], None),
    "optimizer": (COLOURS["optimizer"], None),
    "activations": (COLOURS["activations"], None),
    "recomputed activations": (COLOURS["activations"], "////"),
    "temporaries": (COLOURS["temporaries"], None),
}
PHASES = {"forward": "activations", "backward": "gradients", "step": "optimizer", "evaluation": "test"}


def _unit(largest):
    return ("GiB", GIB) if largest >= GIB else ("MiB", 2**20)


def _capacity(ax, capacity, size, upright=False):
    """A dashed line where the device ends, and its size beside it."""
    if capacity is None:
        return
    place, colour = capacity * GIB / size, COLOURS["limit"]
    (ax.axvline if upright else ax.axhline)(place, linestyle="--", color=colour, linewidth=1.4)
    at, axes = ((place, 0.99), ax.get_xaxis_transform()) if upright else ((0.99, place), ax.get_yaxis_transform())
    text = dict(va="top" if upright else "bottom", ha="right", fontsize=9, color=colour)
    ax.text(*at, f" device: {capacity:g} GiB ", transform=axes, **text)


def _patch(colour, label, hatch=None):
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor="white", hatch=hatch, label=label)


def _axes(ax, size=(WIDTH, HEIGHT)):
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, dpi=DPI, layout="constrained")[1]


def _legend(ax):
    ax.legend(fontsize=9, facecolor="white", edgecolor="none", framealpha=0.85)


def _finish(ax, title, xlabel, ylabel, grid=None):
    """Title, labels with units, light grid, no box: the look of every chart."""
    if title:
        ax.set_title(title, loc="left", fontsize=11, pad=8, wrap=True)
    ax.set_xlabel(xlabel or "", fontsize=10)
    ax.set_ylabel(ylabel or "", fontsize=10)
    ax.tick_params(labelsize=9.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
    return ax


def _finite(value):
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _row(row):
    """(name, value, low, high) of a row; low and high may be None."""
    name, *rest = row
    rest = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if len(rest) not in (1, 3):
        raise ValueError(f"row {row!r} is not (name, value) or (name, value, low, high).")
    return (name, *(float(number) for number in rest), *[None] * (3 - len(rest)))


def _matrix(counts, names):
    """The counts as an array, rows true; counted here from a tuple of predictions and references."""
    import numpy as np

    n = len(names)
    if isinstance(counts, tuple):
        sides = [[names.index(label) if isinstance(label, str) else label for label in side] for side in counts]
        predictions, references = (np.array(side, dtype=int) for side in sides)
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references.")
        counts = np.zeros((n, n), dtype=int)
        np.add.at(counts, (references, predictions), 1)
    counts = np.asarray(counts)
    if counts.shape != (n, n):
        raise ValueError(f"{n} names but a matrix of {len(counts)} rows: pass one name for each row and column.")
    return counts
