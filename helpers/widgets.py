"""Panels to tune by hand: train and compare (`tune`), ask what fits (`will_it_fit`), decode (`decode`).

    panel = widgets.tune(train, learning_rate=(1e-5, 1e-2), epochs=(1, 4))   # train(learning_rate, epochs, callbacks)
    panel                                                                     # as the last line of a cell: shows it
    panel.start(learning_rate=3e-4); panel.wait(); panel.table()              # the same without a front end

What takes time runs in a thread, so the kernel stays free for other cells. In such a thread `print` and progress bars
are lost, and `matplotlib.pyplot` is not safe: everything is drawn through the value of a widget. Nothing is global.
"""

import base64
import contextlib
import dataclasses
import html
import inspect
import io
import json
import math
import os
import threading
import time
import traceback
from difflib import get_close_matches
from pathlib import Path

import ipywidgets

from helpers import env, generate, plots, record

WIDE = {"description_width": "12em"}
REDRAW_S = 0.2  # at most five drawings a second
POINTS = 5  # of a sweep over a range
NOT_METRICS = ("epoch", "step", "total_flos")  # and the times of the Trainer
SHAPES = {  # sizes to ask about without a download: those of well-known models
    "110M BERT-base": ("bert", {}),
    "395M ModernBERT-large": ("modernbert", dict(hidden_size=1024, intermediate_size=2624, num_hidden_layers=28,
                                               num_attention_heads=16)),
    "1.2B Llama": ("llama", dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
                                 num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True)),
    "3B Llama": ("llama", dict(hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
                               num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True)),
    "7B Llama": ("llama", {}),
    "8B Llama": ("llama", dict(intermediate_size=14336, num_key_value_heads=8, vocab_size=128256)),
    "70B Llama": ("llama", dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                                num_attention_heads=64, num_key_value_heads=8, vocab_size=128256)),
}  # fmt: skip
GPUS = {  # about the GiB that torch reports, rounded down: less than the GB on the box, where error correction is on
    "RTX 4060 (8 GB)": 7.6, "RTX 3060 (12 GB)": 11.6, "T4 (16 GB)": 14.5, "RTX 4080 (16 GB)": 15.6,
    "L4 (24 GB)": 21.9, "RTX 4090 (24 GB)": 23.5, "RTX 5090 (32 GB)": 31.3, "A100 (40 GB)": 39.3,
    "L40S (48 GB)": 44.3, "A100 (80 GB)": 79.1, "H100 (80 GB)": 79.1, "H200 (141 GB)": 139.7, "B200 (180 GB)": 178.0,
    "MI300X (192 GB)": 191.5,
}  # fmt: skip
PRECISIONS = {  # dtype of the weights, and of the arithmetic when that is another one
    "fp32": dict(dtype="float32"),
    "mixed, bf16": dict(dtype="float32", autocast="bfloat16"),
    "all bf16": dict(dtype="bfloat16"),
}
METHODS = ("full", "LoRA", "QLoRA")


# ---- What the three panels share ------------------------------------------------------------------------


class _Stopped(Exception):
    """Ends an evaluation or a generation when Stop was pressed."""


class _Panel:
    """A box of widgets and one thread at a time; an error is shown in the box, and raised by `wait`."""

    def __init__(self):
        self._thread, self._stop, self.error = None, threading.Event(), None
        self.status = ipywidgets.HTML(_status("ready"))
        self.problem = ipywidgets.HTML()
        self.start_button = ipywidgets.Button(description="Start", tooltip="Start a run", button_style="primary")
        self.stop_button = ipywidgets.Button(description="Stop", tooltip="Stop the run", disabled=True)
        self.start_button.on_click(lambda _: self._clicked())
        self.stop_button.on_click(lambda _: self.stop())

    def _repr_mimebundle_(self, **options):
        shown = self.box._repr_mimebundle_(**options) or {}
        return {**shown, "text/plain": repr(self)}

    @property
    def running(self):
        """Whether something runs now."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self):
        """Asks what runs to end, and what is queued not to begin; `wait` waits until it has."""
        self._stop.set()
        if self.running:
            self.status.value = _status("stopping …")

    def wait(self, seconds=None):
        """Waits until nothing runs; raises the error of the run. An interrupted kernel stops the run."""
        try:
            while self.running and (seconds is None or seconds > 0):
                self._thread.join(0.05)
                seconds = None if seconds is None else seconds - 0.05
        except KeyboardInterrupt:
            self.stop()
            raise
        if not self.running and self.error is not None:
            raise self.error
        return self

    def _clicked(self):
        try:
            self.start()
        except Exception as error:  # a message in the panel: an exception of a click is not seen by the reader
            self.status.value = _status(str(error))

    def _begin(self, work):
        """Runs `work` in a thread, unless one runs already."""
        if self.running:
            raise RuntimeError("a run is under way, so no second one is started. Stop it, or wait for its end.")
        self._stop.clear()
        self.error, self.problem.value = None, ""
        self.start_button.disabled, self.stop_button.disabled = True, False
        self._thread = threading.Thread(target=self._guarded, args=(work,), daemon=True)
        self._thread.start()

    def _guarded(self, work):
        try:
            work()
        except Exception as error:
            self.error = error
            self.status.value = _status(f"failed: {type(error).__name__}")
            self.problem.value = f'<pre role="alert" style="color: #B00020">{html.escape(traceback.format_exc())}</pre>'
        finally:
            self.start_button.disabled, self.stop_button.disabled = False, True


def _status(text):
    return f'<span role="status">{html.escape(text)}</span>'


def _control(name, values, default=inspect.Parameter.empty):
    """A labelled control, and all widgets that show it: what is typed or dragged is in the first one's `value`."""
    given = default is not inspect.Parameter.empty
    label = {"description": name, "style": WIDE, "tooltip": name}
    if isinstance(values, bool):
        box = ipywidgets.Checkbox(default if given else values, description=name, indent=True, tooltip=name)
        return box, [box]
    if isinstance(values, list):
        one = ipywidgets.Dropdown(options=values, value=default if given else values[0], **label)
        one.layout.width = "26em"
        return one, [one]
    numbers = isinstance(values, tuple) and len(values) == 2 and all(type(v) in (int, float) for v in values)
    if not numbers or not values[0] < values[1]:
        raise ValueError(f"{name}={values!r}: pass (lowest, highest), a list of choices, or True or False.")
    low, high = values
    value = default if given else low
    if not low <= value <= high:
        raise ValueError(f"{name}: the default of train, {value!r}, is not between {low} and {high}.")
    whole = all(type(v) is int for v in values)
    ends = dict(value=value, min=low, max=high)
    text = (ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText)(**ends, step=1 if whole else None)
    text.description, text.tooltip, text.style, text.layout.width = name, name, label["style"], "18em"
    slide = dict(readout=False, tooltip=f"{name}: slider, arrow keys move it", layout={"width": "18em"})
    if _is_log(values):
        exponents = dict(min=math.log10(low), max=math.log10(high), step=0.05, value=value)
        slider = ipywidgets.FloatLogSlider(**exponents, **slide)
    else:
        slider = (ipywidgets.IntSlider if whole else ipywidgets.FloatSlider)(
            **ends, step=1 if whole else (high - low) / 100, **slide
        )
    _tie(slider, text, whole)
    return text, [text, slider]


def _is_log(values):
    """Rates: a range of floats that goes over a power of ten or more."""
    return type(values[1]) is float and values[0] > 0 and values[1] >= 10 * values[0]


def _tie(slider, text, whole):
    """The number in the box is exact; a slider that is dragged gives two digits, and is not pushed while it is."""
    log = isinstance(slider, ipywidgets.FloatLogSlider)

    def is_there(at, number):
        place, wanted = (math.log10(value) if log else value for value in (at, number))
        return abs(place - wanted) <= (0 if whole else 0.51 * slider.step)

    def moved(change):
        if is_there(change["new"], text.value):
            return  # the front end only rounded what was typed to a place of the slider
        value = change["new"] if whole else float(f"{change['new']:.2g}")
        text.value = min(max(value, text.min), text.max)

    def typed(change):
        if not is_there(slider.value, change["new"]):
            slider.value = change["new"]

    slider.observe(moved, "value")
    text.observe(typed, "value")


def _choices(values, points=POINTS):
    """The values of a sweep: all choices, or some of a range with equal steps (equal factors for rates)."""
    if isinstance(values, bool):
        return [False, True]
    if isinstance(values, list):
        return list(values)
    low, high = values
    if _is_log(values):
        return [float(f"{low * (high / low) ** (i / (points - 1)):.2g}") for i in range(points)]
    steps = [low + (high - low) * i / (points - 1) for i in range(points)]
    return sorted({round(step) for step in steps}) if type(high) is int else steps


# ---- tune -----------------------------------------------------------------------------------------------


def tune(train, *, folder=None, **ranges):
    """A panel that runs `train` with the settings of its controls, and keeps each run as a record in `folder`.

    `train` is your own function with a parameter `callbacks`, to be passed to the Trainer; what it returns is
    `panel.result`. A range is (lowest, highest), of floats a power of ten apart for a logarithmic slider, a list of
    choices, or True or False; the defaults of `train` are where the controls start. Parameters without a range keep
    their default, and are recorded too. `folder` is `runs/tune/<name of train>` if not given; the runs that are in it
    already are in the history.

    `panel.start(learning_rate=3e-4)`, `start(seeds=3)` and `start(sweep="learning_rate")` do what the buttons do;
    `stop`, `wait`, `table`, `plot`, `best` and `code` are for the same purpose. Stop ends training at the next step;
    the model stays usable (`panel.model`) and the record says "stopped". `ValueError` for ranges that do not fit
    `train`. Cells that draw random numbers while a run is under way change its result.

    >>> def train(learning_rate=1e-3, seed=0, callbacks=()): ...
    >>> import tempfile
    >>> panel = tune(train, folder=tempfile.mkdtemp(), learning_rate=(1e-4, 1e-2))
    >>> panel.settings
    {'learning_rate': 0.001, 'seed': 0}
    >>> print(panel.code())
    result = train(learning_rate=0.001, seed=0, callbacks=[])

    Taught in notebooks/01_classification.ipynb, "Tune it by hand".
    """
    return _Tuning(train, folder, ranges)


class _Tuning(_Panel):
    def __init__(self, train, folder, ranges):
        super().__init__()
        self.train, self.ranges, self._fixed = train, ranges, _fixed(train, ranges)
        self.folder = Path(folder or Path(os.environ.get("HELPERS_RUNS", "runs")) / "tune" / train.__name__)
        self.result = self.model = None
        self.records = record.load(self.folder) if list(self.folder.glob("*.json")) else []
        self.drawing_s, self.drawings, self._drawn = 0.0, 0, 0.0  # processor seconds, how often, when
        self._curve, self._steps, self._began, self._place = [], 0, None, ""
        self._build()
        self._show_history()
        self._draw(force=True)

    def _build(self):
        parameters = inspect.signature(self.train).parameters
        made = {name: _control(name, values, parameters[name].default) for name, values in self.ranges.items()}
        self.controls = {name: control for name, (control, _) in made.items()}
        ways = {"once": {}} | ({"with three seeds": {"seeds": 3}} if "seed" in parameters else {})
        ways |= {f"sweep {name}": {"sweep": name} for name in self.ranges}
        self.way = ipywidgets.Dropdown(options=ways, description="run", tooltip="once, or queued", style=WIDE)
        self.progress = ipywidgets.IntProgress(description="step", tooltip="progress of the run", style=WIDE)
        self.picture, self.history = ipywidgets.HTML(), ipywidgets.HTML()
        self.chosen = ipywidgets.Dropdown(description="settings of", tooltip="the run to repeat", style=WIDE)
        self.use_button = ipywidgets.Button(description="Use these settings", tooltip="Print the code of that run")
        self.code_text = ipywidgets.Textarea(description="code", tooltip="copy this into a cell", style=WIDE)
        self.code_text.layout.width = "90%"
        self.use_button.on_click(lambda _: self._use())
        rows = [ipywidgets.HBox(parts) for _, parts in made.values()]
        buttons = ipywidgets.HBox([self.way, self.start_button, self.stop_button])
        using = ipywidgets.HBox([self.chosen, self.use_button])
        live = [ipywidgets.HBox([self.progress, self.status]), self.problem, self.picture, self.history]
        self.box = ipywidgets.VBox([*rows, buttons, *live, using, self.code_text])
        self.box.add_class("tuning-panel")

    def __repr__(self):
        ranges = ", ".join(f"{name}: {_range(values)}" for name, values in self.ranges.items())
        return f"A panel to tune by hand ({ranges}). Run this cell in JupyterLab to use it."

    @property
    def settings(self):
        """What the next run will be called with."""
        return {**{name: control.value for name, control in self.controls.items()}, **self._fixed}

    def start(self, *, sweep=None, seeds=None, **settings):
        """Runs `train` in the background: once, over some seeds, or once for each value of a control."""
        if self.running:
            self._begin(None)  # says so
        for name, value in settings.items():
            if name not in self.controls:
                raise ValueError(f"{name} has no control; there are {', '.join(self.controls)}.")
            self.controls[name].value = value
        way = self.way.value if sweep is None and seeds is None else {"sweep": sweep, "seeds": seeds}
        sweep, seeds, chosen = way.get("sweep"), way.get("seeds") or 1, self.settings
        if seeds > 1 and "seed" not in chosen:
            raise ValueError("train has no parameter seed, so it cannot be repeated over seeds. Give it one.")
        if sweep is not None and sweep not in self.controls:
            raise ValueError(f"{sweep} has no control to sweep; there are {', '.join(self.controls)}.")
        queue = [{**chosen, sweep: value} for value in _choices(self.ranges[sweep])] if sweep else [chosen]
        if seeds > 1:
            queue = [{**run, "seed": chosen["seed"] + i} for run in queue for i in range(seeds)]
        self._begin(lambda: self._run_all(queue))
        return self

    def _run_all(self, queue):
        for i, settings in enumerate(queue, 1):
            if self._stop.is_set():
                break
            self._place = f"run {i} of {len(queue)}, " if len(queue) > 1 else ""
            self._run(settings)

    def _run(self, settings):
        """One run and its record; the record is written whatever happens."""
        self._curve, self._steps, self._began, self.result = [], 0, None, None
        self.status.value, started, outcome = _status(f"{self._place}starting"), time.perf_counter(), "failed"
        try:
            with contextlib.suppress(_Stopped):
                self.result = self.train(**settings, callbacks=[_callback(self)])
            outcome = "stopped" if self._stop.is_set() else "finished"
            self.progress.value = self._steps if outcome == "finished" else self.progress.value
        finally:
            seconds = round(time.perf_counter() - started, 2)
            path = record.save(
                self.folder, "run", settings=settings, metrics=_metrics(self._curve), curve=self._curve,
                seconds=seconds, machine=env.machine(), versions=env.versions(), outcome=outcome,
            )  # fmt: skip
            self.records.append(record.load(path))
            self._show_history()
            self._draw(force=True)
            self.status.value = _status(f"{self._place}{outcome} after {seconds:.1f} s, saved as {path.name}")

    def _seen(self, step, last, model):
        """Called by the callback after each step."""
        self._steps, self.model = last, model
        self._began = self._began or (time.perf_counter(), step)
        self._draw(step)

    def _draw(self, step=None, force=False):
        """The status and the picture, not more often than REDRAW_S; what it costs is added up."""
        now = time.perf_counter()
        if not force and now - self._drawn < REDRAW_S:
            return
        self._drawn, began, self.drawings = now, time.thread_time(), self.drawings + 1
        if step is not None:
            done = step - self._began[1]
            left = f", {(now - self._began[0]) / done * (self._steps - step):.0f} s left" if done else ""
            self.progress.max, self.progress.value = self._steps, step
            self.status.value = _status(f"{self._place}step {step} of {self._steps}{left}")
        earlier = {run["name"]: run["curve"] for run in self.records if run.get("curve")}
        if step is None and self.records and self.records[-1].get("curve") and not self.running | bool(self._curve):
            self._curve = self.records[-1]["curve"]  # a new panel shows the last run of its folder
        if self._curve and self.records and self.records[-1].get("curve") == self._curve:
            earlier.pop(self.records[-1]["name"])
        self.picture.value = _svg(self._curve, earlier)
        self.drawing_s += time.thread_time() - began

    def _show_history(self):
        self.history.value = _history(self.records)
        self.chosen.options = [run["name"] for run in reversed(self.records)]
        self.chosen.index = None  # new options leave the list of the front end without a choice
        self.chosen.index = 0 if self.records else None

    def _use(self):
        """The code of the chosen run; the controls go to its settings."""
        self.code_text.value = self.code(self.chosen.value)
        for run in self.records:
            for name, control in self.controls.items() if run["name"] == self.chosen.value else ():
                control.value = run["settings"][name]

    def code(self, name=None):
        """The line that repeats a run (of this name; else with the settings of the controls) without the panel."""
        found = [run["settings"] for run in self.records if run["name"] == name]
        if name is not None and not found:
            raise ValueError(f"there is no run {name!r} in {self.folder.name}: pass the name in the table.")
        settings = self.settings | (found[0] if found else {})  # in the order of the panel
        arguments = "".join(f"{name}={value!r}, " for name, value in settings.items())
        return f"result = {self.train.__name__}({arguments}callbacks=[])"

    def table(self):
        """The runs as a table."""
        names = ["name", *(f"settings.{name}" for name in self.settings), *_metric_names(self.records)]
        known = {name for run in self.records for name in _flat(run)} | {"name", "seconds", "outcome"}
        return record.table(self.records, [name for name in [*names, "seconds", "outcome"] if name in known])

    def best(self, metric, highest=True):
        """The best value of a metric over the runs, or None when there is none yet."""
        values = [run["metrics"][metric] for run in self.records if run["metrics"].get(metric) is not None]
        return (max if highest else min)(values) if values else None

    def plot(self, title=None):
        """The curves of all runs, named with the settings that differ, as a chart; for the main thread."""
        drawn = [run for run in self.records if run["curve"]]
        differ = [name for name in self.settings if len({str(run["settings"].get(name)) for run in drawn}) > 1]
        told = {run["name"]: "".join(f", {name} {run['settings'].get(name)}" for name in differ) for run in drawn}
        return plots.learning_curves({run["name"] + told[run["name"]]: run["curve"] for run in drawn}, title=title)


def _fixed(train, ranges):
    """The defaults of the parameters that have no control; an error for a signature that cannot be called."""
    parameters = inspect.signature(train).parameters
    if "callbacks" not in parameters:
        raise ValueError(
            f"{train.__name__} has no parameter callbacks. Add it, and pass it on: Trainer(callbacks=...)."
        )
    for name in ranges:
        if name not in parameters:
            close = "".join(f" (closest: {one})" for one in get_close_matches(name, parameters, 1))
            raise ValueError(f"{train.__name__} has no parameter {name}{close}: it has {', '.join(parameters)}.")
    rest = {name: one.default for name, one in parameters.items() if name not in (*ranges, "callbacks")}
    missing = [name for name, default in rest.items() if default is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"{', '.join(missing)} of {train.__name__}: give a range here, or a default there.")
    return rest


def _range(values):
    return f"{values[0]:g} to {values[1]:g}" if isinstance(values, tuple) else str(values)


def _callback(panel):
    """What a panel gives to the Trainer: it sees each step and each log, and can stop."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **more):
            panel._seen(state.global_step, state.max_steps, model)

        def on_step_end(self, args, state, control, model=None, **more):
            panel._seen(state.global_step, state.max_steps, model)
            self.on_substep_end(args, state, control)

        def on_substep_end(self, args, state, control, **more):
            control.should_training_stop |= panel._stop.is_set()

        def on_epoch_end(self, args, state, control, **more):
            if panel._stop.is_set():  # who presses Stop does not wait for an evaluation
                control.should_evaluate = control.should_save = False

        def on_prediction_step(self, args, state, control, **more):
            if panel._stop.is_set():
                raise _Stopped

        def on_log(self, args, state, control, logs=None, **more):
            panel._curve.append({**logs, "step": state.global_step})

    return Watch()


def _metrics(curve):
    """The last value of each metric of a run: those of the evaluations, and the mean loss of training."""
    found = {key: value for row in curve for key, value in row.items()}
    timed = ("_runtime", "_per_second", "_model_preparation_time")
    return {k: v for k, v in found.items() if k.startswith(("eval_", "train_loss")) and not k.endswith(timed)}


def _metric_names(records):
    return list(dict.fromkeys(f"metrics.{name}" for run in records for name in run["metrics"]))


def _flat(run):
    return {f"{part}.{name}": value for part in ("settings", "metrics") for name, value in run[part].items()}


def _history(records):
    """The runs as an HTML table, the last one first; what differs from the run before is marked."""
    if not records:
        return "<p>no runs yet</p>"
    flat = [_flat(run) for run in records]
    names = sorted(dict.fromkeys(name for run in flat for name in run), key=lambda name: name.startswith("metrics."))
    heads = "".join(f'<th scope="col">{html.escape(name.partition(".")[2])}</th>' for name in names)
    lines = []
    for i, (run, values) in reversed(list(enumerate(zip(records, flat, strict=True)))):
        before, cells = flat[i - 1] if i else values, ""
        for name in names:
            value = values.get(name)
            shown = html.escape("—" if value is None else f"{value:.4g}" if type(value) is float else str(value))
            differs = name.startswith("settings.") and value != before.get(name)
            cells += f"<td>{f'<mark><b>{shown}</b></mark>' if differs else shown}</td>"
        rest = f"<td>{run.get('seconds') or 0:.1f}</td><td>{run.get('outcome', '')}</td>"
        lines.append(f'<tr><th scope="row">{html.escape(run["name"])}</th>{cells}{rest}</tr>')
    head = f'<tr><th scope="col">run</th>{heads}<th scope="col">seconds</th><th scope="col">outcome</th></tr>'
    caption = "<caption>runs, the last one first; marked: differs from the run before</caption>"
    look = 'class="tuning-history"'
    table = f"<table {look}>{caption}<thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="jp-RenderedHTMLCommon">{table}</div>'


def _svg(curve, earlier, width=640, height=240):
    """Loss over the steps: training in its colour, validation in its own, earlier runs faint. A text, made in 1 ms."""
    lines = [(_points(run, key), "earlier", "#999999") for run in earlier.values() for key in ("loss", "eval_loss")]
    lines += [(_points(curve, "loss"), "train", plots.COLOURS["train"])]
    lines += [(_points(curve, "eval_loss"), "validation", plots.COLOURS["validation"])]
    every = [point for points, _, _ in lines for point in points]
    right, top = max([x for x, _ in every], default=1) or 1, 1.05 * max([y for _, y in every], default=1) or 1
    left, bottom, drawn = 50, height - 40, ""

    def at(x, y):
        return f"{left + x / right * (width - left - 10):.1f},{bottom - y / top * (bottom - 10):.1f}"

    for share in (0, 0.5, 1):
        y, x = bottom - share * (bottom - 10), left + share * (width - left - 10)
        drawn += f'<path d="M{left},{y:.0f} H{width - 10}" stroke="#E5E5E5"/>'
        drawn += f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{share * top:.2f}</text>'
        drawn += f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{share * right:.0f}</text>'
    for points, kind, colour in lines:
        if points:
            look = f'class="{kind}" stroke="{colour}" stroke-width="{1 if kind == "earlier" else 2}"'
            drawn += f'<polyline fill="none" {look} points="{" ".join(at(x, y) for x, y in points)}"/>'
            drawn += f'<circle cx="{at(*points[-1]).replace(",", chr(34) + " cy=" + chr(34))}" r="3" fill="{colour}"/>'
    now = [f"{kind} loss {points[-1][1]:.3f}" for points, kind, _ in lines if points and kind != "earlier"]
    told = html.escape(", ".join(now) or "no loss yet")
    note = f"optimizer step · loss (nats): blue training, black validation, grey {len(earlier)} earlier"
    drawn += f'<text x="{left}" y="{height - 6}">{note}</text>'
    style = f'viewBox="0 0 {width} {height}" style="max-width: {width}px; font: 12px sans-serif; background: white"'
    return f'<svg class="tuning-curve" role="img" aria-label="{told}" {style}>{drawn}</svg>'


def _points(curve, key, most=300):
    points = [(row["step"], row[key]) for row in curve if isinstance(row.get(key), int | float)]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    return points[:: max(1, len(points) // most)]


# ---- will_it_fit ----------------------------------------------------------------------------------------


def will_it_fit(**settings):
    """A panel that predicts the peak memory of a training by part, against the memory of a GPU.

    `model` is one of `SHAPES`, a name in `data/models`, a folder or a Hub id; `gpu` one of `GPUS`; `method` full,
    LoRA or QLoRA (on all linear
    layers); then `rank`, `batch`, `length`, `precision`, `checkpointing` and `optimizer`. Each may be given here, or to
    `panel.start(...)`. What does not fit gets the smallest change that does: smaller batches, checkpointing, LoRA,
    QLoRA, shorter rows, in this order. A newer setting wins over a prediction under way; predictions are kept.

    `panel.prediction`, `panel.fit` and `panel.change` are the answer, `panel.plot()` draws it.

    >>> panel = will_it_fit(model="7B Llama", method="QLoRA", gpu="T4 (16 GB)")
    >>> panel.settings["method"], panel.settings["batch"]
    ('QLoRA', 1)

    Taught in notebooks/03_full_fine_tuning.ipynb, "Will it fit? Play".
    """
    return _Fitting(settings)


class _Fitting(_Panel):
    def __init__(self, settings):
        super().__init__()
        from helpers import memory

        model = ipywidgets.Combobox(value="7B Llama", options=list(SHAPES), description="model", style=WIDE)
        model.tooltip, model.continuous_update = "a size of this list, a folder, or a Hub id", False
        model.layout.width = "26em"
        made = {
            "model": (model, [model]),
            "gpu": _control("gpu", list(GPUS), "RTX 4090 (24 GB)"),
            "method": _control("method", list(METHODS), "LoRA"),
            "rank": _control("rank", (1, 256), 16),
            "batch": _control("batch", (1, 128), 1),
            "length": _control("length", (16, 8192), 512),
            "precision": _control("precision", list(PRECISIONS), "all bf16"),
            "checkpointing": _control("checkpointing", False),
            "optimizer": _control("optimizer", list(memory.OPTIMIZERS)),
        }
        self.controls = {name: control for name, (control, _) in made.items()}
        self.prediction = self.fit = self.change = None
        self._lock, self._cache, self._wanted, self._busy, self._quiet = threading.Lock(), {}, None, False, False
        self._set(settings)
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self.start_button.description, self.start_button.tooltip = "Predict", "Predict the memory of these settings"
        self.picture, self.advice = ipywidgets.HTML(), ipywidgets.HTML()
        rows = [ipywidgets.HBox(parts) for _, parts in made.values()]
        answer = [ipywidgets.HBox([self.start_button, self.status]), self.problem, self.picture, self.advice]
        self.box = ipywidgets.VBox([*rows, *answer])
        self.box.add_class("fitting-panel")

    def __repr__(self):
        said = f" {self.said}" if self.fit else ""
        return f"A panel that predicts memory.{said} Run this cell in JupyterLab to use it."

    @property
    def settings(self):
        """What is asked about."""
        return {name: control.value for name, control in self.controls.items()}

    def start(self, **settings):
        """Predicts for these settings in the background; a prediction under way is dropped."""
        self._set(settings)
        self._changed()
        return self

    def _set(self, settings):
        self._quiet = True  # one prediction for all of them
        try:
            for name, value in settings.items():
                if name not in self.controls:
                    raise ValueError(f"will_it_fit has no {name}; it has {', '.join(self.controls)}.")
                self.controls[name].value = value
        finally:
            self._quiet = False

    def _changed(self, _=None):
        if self._quiet:
            return
        with self._lock:
            self._wanted = self.settings
            if self._busy:
                return
            self._busy, self._thread = True, threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self):
        """Answers the newest question until there is none."""
        while True:
            time.sleep(0.05)  # while a slider is dragged, only where it rests counts
            with self._lock:
                wanted, self._wanted = self._wanted, None
                if wanted is None:
                    self._busy = False
                    return
            self.error, self.problem.value = None, ""
            try:
                self._answer(wanted)
            except Exception as error:
                self.error, self.prediction, self.fit = error, None, None
                self.status.value = _status("no prediction")
                known = isinstance(error, ValueError)  # memory says what is wrong in a sentence
                told = html.escape(str(error) if known else traceback.format_exc())
                self.problem.value = f'<pre role="alert" style="color: #B00020; white-space: pre-wrap">{told}</pre>'

    def _answer(self, wanted):
        self.status.value, self.advice.value = _status(f"predicting: {_named(wanted)} …"), ""
        prediction, fit = self._predicted(wanted)
        if self._wanted is not None:
            return  # stale: a newer question waits
        self.prediction, self.fit, self.change = prediction, fit, None
        self.said = f"{_named(wanted)}: {fit.answer}, {fit.why}"
        self._draw(wanted)
        self.status.value = _status(self.said)
        if fit.answer == "yes":
            return
        self.advice.value = _status("looking for the smallest change that makes it fit …")
        change = self._smallest_change(wanted)
        if self._wanted is not None:
            return
        self.change = change
        told = ", ".join(f"{name} {value}" for name, value in (change or {}).items())
        told += " (with accumulation)" if change and "batch" in change else ""
        self.advice.value = _status(f"it fits with: {told}" if change else "no change that was tried makes it fit")

    def _predicted(self, asked):
        """The prediction and whether it fits; the prediction from the cache, if these settings were asked before."""
        from helpers import memory

        needed = {name: value for name, value in asked.items() if name != "gpu"}
        if asked["method"] == "full":
            needed.pop("rank")
        key = json.dumps(needed)
        if key not in self._cache:
            self._cache[key] = memory.predict(**_arguments(asked))
        prediction = self._cache[key]
        return prediction, memory.fits(dataclasses.replace(prediction, settings={}), GPUS[asked["gpu"]])

    def _smallest_change(self, asked):
        """The first of the ordered changes that fits, with the largest batch that does; ends early when stale."""
        batches = [{"batch": asked["batch"] // 2**k} for k in range(1, asked["batch"].bit_length())]
        slower = {} if asked["checkpointing"] else {"checkpointing": True}
        later = METHODS[METHODS.index(asked["method"]) + 1 :]
        levels = [{}, slower, *({"method": method} | slower for method in later)]
        last = {"method": "QLoRA"} | slower
        levels += [last | {"length": asked["length"] // 2**k} for k in range(1, 8) if asked["length"] // 2**k >= 64]
        for level in levels:
            changes = [level] * bool(level) + [level | smaller for smaller in batches]
            for change in [*changes[-1:], *changes]:  # the smallest batch first: without it, no larger one fits either
                if self._wanted is not None:
                    return None
                fits = self._predicted({**asked, **change})[1].answer == "yes"
                if fits and (change != changes[-1] or len(changes) == 1):
                    return change
                if not fits and change == changes[-1]:
                    break
            else:
                if changes:
                    return changes[-1]
        return None

    def _draw(self, asked):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 2.4), dpi=80)
        self._bars(asked, figure.add_axes((0.03, 0.24, 0.94, 0.62)))
        self.picture.value = _image(figure, self.said)

    def _bars(self, asked, ax):
        bars = {" ": {"predicted": self.prediction.split}}
        ax = plots.memory(bars, ax, capacity=GPUS[asked["gpu"]], title=f"{_named(asked)}: {self.fit.answer}")
        ax.set_yticks([])
        return ax

    def plot(self):
        """The last answer, as a chart; for the main thread."""
        import matplotlib.pyplot as plt

        return self._bars(self.settings, plt.subplots(figsize=(7, 2.4), dpi=100, layout="constrained")[1])


def _named(asked):
    rank = "" if asked["method"] == "full" else f" r={asked['rank']}"
    return (
        f"{Path(asked['model']).name}, {asked['method']}{rank}, {asked['batch']} x {asked['length']}, on {asked['gpu']}"
    )


def _arguments(asked):
    """The settings of the panel as arguments of `memory.predict`."""
    import peft
    import transformers

    model, more = asked["model"], {}
    if model in SHAPES:
        kind, sizes = SHAPES[model]
        model = transformers.CONFIG_MAPPING[kind](**sizes)
    elif (ours := env.DATA / "models" / model).is_dir():
        model = ours
    precision = PRECISIONS[asked["precision"]]
    if asked["method"] != "full":
        lora = {"peft_type": "LORA", "r": asked["rank"], "target_modules": "all-linear"}
        more["peft"] = peft.get_peft_config(lora)
    if asked["method"] == "QLoRA":
        compute = precision.get("autocast") or precision["dtype"]
        four_bit = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        more["quantization_config"] = transformers.BitsAndBytesConfig.from_dict(
            four_bit | {"bnb_4bit_compute_dtype": compute}
        )
    more |= dict(optim=asked["optimizer"], activation_checkpointing=asked["checkpointing"])
    return dict(model=model, batch=asked["batch"], length=asked["length"], **precision, **more)


def _image(figure, told):
    """A figure as an HTML image; without pyplot, so it is safe in a thread."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(told)}" src="data:image/png;base64,{data}">'


# ---- decode ---------------------------------------------------------------------------------------------


def decode(model, tokenizer, prompt="", **settings):
    """A panel that lets a model write: each answer beside the settings that made it, and the next token's chances.

    Temperature 0 is greedy (top-p and top-k then do nothing); `top_k` 0 and `no_repeat_ngram_size` 0 are off. The bars
    are for the token of the answer that `show_token` counts to. The global random numbers are put back after each
    answer. `panel.answers` has them all, `panel.table()` shows them.

    >>> from helpers import env
    >>> from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    >>> panel = decode(model, tokenizer, "Is it good?", max_new_tokens=3)
    >>> len(panel.start(temperature=1.0).wait().answers)
    1

    Taught in notebooks/02_generation.ipynb, "Decode by hand".
    """
    return _Decoding(model, tokenizer, prompt, settings)


class _Decoding(_Panel):
    def __init__(self, model, tokenizer, prompt, settings):
        super().__init__()
        self.model, self.tokenizer, self.answers, self.tokens = model, tokenizer, [], []
        self.prompt = ipywidgets.Textarea(value=prompt, description="prompt", tooltip="what the model is asked")
        self.prompt.style, self.prompt.layout.width = WIDE, "90%"
        ranges = dict(
            temperature=((0.0, 2.0), 0.0), top_p=((0.05, 1.0), 1.0), top_k=((0, 100), 0), num_beams=((1, 8), 1),
            repetition_penalty=((0.5, 2.0), 1.0), length_penalty=((-2.0, 2.0), 1.0),
            no_repeat_ngram_size=((0, 5), 0), max_new_tokens=((1, 200), 48), seed=((0, 999), 0),
            show_token=((1, 20), 1),
        )  # fmt: skip
        made = {name: _control(name, values, value) for name, (values, value) in ranges.items()}
        self.controls = {name: control for name, (control, _) in made.items()}
        self._set(settings)
        self.start_button.description, self.start_button.tooltip = "Generate", "Write an answer"
        self.picture, self.history = ipywidgets.HTML(), ipywidgets.HTML()
        rows = [ipywidgets.HBox(parts) for _, parts in made.values()]
        buttons = ipywidgets.HBox([self.start_button, self.stop_button, self.status])
        self.box = ipywidgets.VBox([self.prompt, *rows, buttons, self.problem, self.history, self.picture])
        self.box.add_class("decoding-panel")

    def __repr__(self):
        return "A panel to try decoding settings. Run this cell in JupyterLab to use it."

    @property
    def settings(self):
        """What the next answer is made with."""
        return {"prompt": self.prompt.value, **{name: control.value for name, control in self.controls.items()}}

    def _set(self, settings):
        controls = {"prompt": self.prompt, **self.controls}
        for name, value in settings.items():
            if name not in controls:
                raise ValueError(f"decode has no {name}; it has {', '.join(controls)}.")
            controls[name].value = value

    def start(self, **settings):
        """Writes one answer in the background."""
        if not self.running:
            self._set(settings)
        asked = self.settings
        self._begin(lambda: self._write(asked))
        return self

    def _write(self, asked):
        import torch

        self.status.value = _status("writing …")
        options = {name: value for name, value in asked.items() if name not in ("prompt", "seed", "show_token")}
        options["do_sample"] = options["temperature"] > 0
        if not options["do_sample"]:
            options |= {"temperature": None, "top_p": None, "top_k": None}
        if options["num_beams"] == 1:
            options.pop("length_penalty")  # of whole beams
        with torch.random.fork_rng():
            torch.manual_seed(asked["seed"])
            at = dict(at=asked["show_token"], **options)
            tokens = generate.next_tokens(self.model, self.tokenizer, asked["prompt"], **at)
            torch.manual_seed(asked["seed"])
            stops = [lambda ids, _, **more: torch.full((len(ids),), self._stop.is_set(), device=ids.device)]
            found, ended = generate.texts(
                self.model, self.tokenizer, [asked["prompt"]], return_stopped=True, stopping_criteria=stops, **options
            )
        outcome = "stopped" if self._stop.is_set() else "ended by itself" if ended[0] else "cut at max_new_tokens"
        self.tokens, self.answers = tokens, [*self.answers, {**asked, "answer": found[0], "outcome": outcome}]
        self.history.value = f'<div class="jp-RenderedHTMLCommon">{self.table()._repr_html_()}</div>'
        self._draw()
        self.status.value = _status(outcome)

    def table(self):
        """The answers with the settings that differ, the last one first."""
        always = ("answer", "outcome")
        differ = [name for name in self.settings if len({run[name] for run in self.answers}) > 1]
        return record.show([{name: run[name] for name in [*differ, *always]} for run in reversed(self.answers)])

    def _draw(self):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.2), dpi=80, layout="constrained")
        self._bars(figure.subplots())
        told = ", ".join(f"{row['token']} {row['kept']:.2f}" for row in self.tokens)
        self.picture.value = _image(figure, f"next token: {told}")

    def _bars(self, ax):
        names, places = [repr(row["token"]) for row in self.tokens], range(len(self.tokens))
        colour = plots.CLASSES[0]
        ax.barh(places, [row["kept"] for row in self.tokens], 0.5, color=colour, label="with these settings")
        of_model = [row["probability"] for row in self.tokens]
        ax.barh(places, of_model, 0.8, color="none", edgecolor="#333333", label="of the model")
        ax.set_yticks(places, names, parse_math=False)
        ax.set_xlim(0, 1)
        ax.invert_yaxis()
        ax.legend(fontsize=9, edgecolor="none")
        after = self.tokens[0]["after"] or "(nothing)"
        ax.set_xlabel(f"probability of the answer's next token after: {after}", parse_math=False)
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def plot(self):
        """The chances of the first token of the last answer, as a chart; for the main thread."""
        import matplotlib.pyplot as plt

        return self._bars(plt.subplots(figsize=(7, 3.2), dpi=100, layout="constrained")[1])
