"""Panels to tune by hand: train and compare (`tune`), ask what fits (`will_it_fit`), decode (`decode`).

    panel = widgets.tune(train, learning_rate=(1e-5, 1e-2), epochs=(1, 4))   # train(learning_rate, epochs, callbacks)
    panel                                                                     # as the last line of a cell: shows it
    panel.start(learning_rate=3e-4); panel.wait(); panel.table()              # the same without a browser

Whatever takes time runs in a thread, so the kernel stays free for other cells. In such a thread `print` and progress
bars are lost and `matplotlib.pyplot` is not safe: everything is shown through the value of a widget. Nothing is global.
"""

import base64
import contextlib
import html
import inspect
import io
import json
import math
import os
import statistics
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import ipywidgets
import numpy
import peft
import torch
import transformers

from helpers import env, generate, memory, plots, record

LABEL = {"description_width": "11.5em"}
REDRAW_S, SHARE = 0.5, 0.1  # how often a run is looked at; how much of the processor its drawings may take
POINTS = 5  # of a sweep over a range
REQUIRED = inspect.Parameter.empty  # the default of a parameter that has none
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
GPUS = memory.CARDS
PRECISIONS = {  # dtype of the weights, and of the arithmetic when that is another one
    "fp32": dict(dtype="float32"),
    "mixed, bf16": dict(dtype="float32", autocast="bfloat16"),
    "all bf16": dict(dtype="bfloat16"),
}
METHODS = ("full", "LoRA", "QLoRA")


# ---- What the three panels share ------------------------------------------------------------------------


class Stopped(Exception):
    """Ends an evaluation, a search or a generation when Stop was pressed or a newer question waits."""


class _Panel:
    """Controls, Start and Stop, a status, a picture and a table; one thread at a time, whose error `wait` raises.

    A kind of panel gives the controls (name -> its widget and its row, from `_control`). Its `_work(settings, stop)`
    may raise `Stopped` once `stop` is set, appends to `answers` and says how it went. Its `_chart(ax)` draws the
    picture.
    """

    plain_errors = ()  # errors whose message says all: shown without a traceback
    newest_wins = False  # whether a start ends what runs; else it is refused

    def __init__(self, controls, css_class, button, *, before=(), live=(), below=()):
        self.controls = {name: control for name, (control, _) in controls.items()}
        self._thread, self._stop, self.error, self.answers = None, threading.Event(), None, []
        self.status, self.problem, self.picture, self.history = (ipywidgets.HTML() for _ in range(4))
        self.start_button = ipywidgets.Button(description=button, tooltip="Start a run", button_style="primary")
        self.stop_button = ipywidgets.Button(description="Stop", tooltip="Stop the run", disabled=True)
        self.start_button.on_click(lambda _: self._clicked())
        self.stop_button.on_click(lambda _: self.stop())
        rows = ipywidgets.VBox([row for _, row in controls.values()], layout={"width": "29em"})
        buttons = ipywidgets.HBox([*before, self.start_button, self.stop_button])
        result = ipywidgets.VBox([buttons, *live, self.status, self.picture])
        result.layout.width = self.picture.layout.max_width = "565px"
        sides = ipywidgets.HBox([rows, result], layout={"flex_flow": "row wrap", "grid_gap": "0 1em"})
        self.box = ipywidgets.VBox([sides, self.problem, self.history, *below]).add_class(css_class)
        self._say("ready.")

    def __repr__(self):
        return f"A panel to set {', '.join(self.controls)}: {self._said} Run this cell in JupyterLab to use it."

    def _repr_mimebundle_(self, **options):
        shown = self.box._repr_mimebundle_(**options) or {}
        return {**shown, "text/plain": repr(self)}

    @property
    def settings(self):
        """What the controls are set to."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def running(self):
        """Whether something runs now."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, **settings):
        """Sets the controls, and works on what they are set to in the background."""
        self._set(settings)
        return self._begin(partial(self._work, self.settings))

    def stop(self):
        """Asks what runs to end, and what is queued not to begin; `wait` waits until it has."""
        self._stop.set()
        if self.running:
            self._say("stopping …")

    def wait(self, seconds=math.inf):
        """Waits until nothing runs; raises the error of the run. An interrupted kernel stops the run."""
        deadline = time.monotonic() + seconds
        try:
            while self.running and time.monotonic() < deadline:
                self._thread.join(0.05)
        except KeyboardInterrupt:
            self.stop()
            raise
        if not self.running and self.error is not None:
            raise self.error
        return self

    def table(self):
        """What was run so far, one row each, the last one the newest."""
        return record.show(self._rows())

    def plot(self):
        """The picture as a chart; for the main thread."""
        import matplotlib.pyplot as plt

        return self._chart(plt.subplots(figsize=(7, 3), dpi=100, layout="constrained")[1])

    def _rows(self):
        """The answers: the settings that differ between them, and what came out."""
        differ = [name for name in self.settings if len({str(answer[name]) for answer in self.answers}) > 1]
        hidden = {*self.settings} - {*differ}
        return [{name: value for name, value in answer.items() if name not in hidden} for answer in self.answers]

    def _set(self, settings):
        for name, value in settings.items():
            self._existing(name).value = value

    def _existing(self, name):
        if name not in self.controls:
            raise ValueError(f"there is no control {name}; the controls are {', '.join(self.controls)}.")
        return self.controls[name]

    def _clicked(self):
        try:
            self.start()
        except Exception as error:  # a message in the panel: an exception of a click is not seen by the reader
            self._say(str(error))

    def _say(self, text):
        self._said, self.status.value = text, f'<span role="status">{html.escape(text)}</span>'

    def _show_chart(self, text):
        """Shows the chart, without pyplot, so it is safe in a thread; `text` is what it says, for who cannot see it."""
        from matplotlib.figure import Figure

        figure, file = Figure(figsize=(7, 3), dpi=80, layout="constrained"), io.BytesIO()
        self._chart(figure.subplots())
        figure.savefig(file, format="png")
        data = base64.b64encode(file.getvalue()).decode()
        self.picture.value = f'<img alt="{html.escape(text)}" decoding="sync" src="data:image/png;base64,{data}">'

    def _show_history(self):
        """The rows as a table, the last one first; a setting that differs from the row before is marked."""
        rows = self._rows()[::-1]
        if not rows:
            self.history.value = "<p>no runs yet</p>"
            return
        table = record.show(rows).set_index("run").rename_axis(index=None, columns="run")
        settings = [name for name in table if name in self.settings]
        texts = table[settings].astype(str)
        changed = texts.ne(texts.shift(-1).fillna(texts))  # the last row has none before it
        marks = changed.replace({True: "font-weight: bold; background: #FFF2B2; color: black", False: ""})
        style = table.style.apply(lambda _: marks, axis=None, subset=settings).format(_text, escape="html")
        style.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
        style.set_table_styles([{"selector": "th, td", "props": "text-align: left !important"}])
        table = style.set_table_attributes('class="panel-history"').to_html()
        self.history.value = f'<div class="jp-RenderedHTMLCommon">{table}</div>'

    def _begin(self, work):
        """Runs `work` in a thread, once the thread before, which is stopped, has ended."""
        if self.running and not self.newest_wins:
            raise RuntimeError("a run is under way, so no second one is started. Stop it, or wait for its end.")
        self._stop.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guarded, args=(work, self._stop, self._thread), daemon=True)
        self._thread.start()
        return self

    def _guarded(self, work, stop, thread_before):
        """Runs `work`; its error goes to the panel, since nobody sees an exception of a thread."""
        if thread_before is not None:
            thread_before.join()
        self.error, self.problem.value = None, ""
        self.start_button.disabled, self.stop_button.disabled = True, False
        try:
            work(stop)
        except Stopped:
            self._say("stopped")
        except Exception as error:
            self.error = error
            self._say(f"failed: {type(error).__name__}")
            message = str(error) if isinstance(error, self.plain_errors) else traceback.format_exc()
            style = "color: #B00020; white-space: pre-wrap; word-break: normal; max-height: 24em; overflow: auto"
            self.problem.value = f'<pre role="alert" style="{style}">{html.escape(message)}</pre>'
        finally:
            self.start_button.disabled, self.stop_button.disabled = False, True


def _text(value):
    return "—" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _control(name, values, default=REQUIRED):
    """The widget whose value is the setting, and the row that shows it: for a number with a slider beside it."""
    value = _first_value(name, values, default)
    look = {"value": value, "description": name, "tooltip": name, "style": LABEL}
    if isinstance(values, bool):
        control = ipywidgets.Checkbox(**look)
        return control, control
    if isinstance(values, list):
        control = ipywidgets.Dropdown(options=values, layout={"width": "27em"}, **look)
        return control, control
    low, high = values
    whole = all(type(end) is int for end in values)
    box = ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText
    text = box(min=low, max=high, layout={"width": "18em"}, **look)
    look = {"value": value, "readout": False, "tooltip": f"{name}: slider, arrow keys move it"}
    if _is_log(values):
        slider = ipywidgets.FloatLogSlider(min=math.log10(low), max=math.log10(high), step=0.05, **look)
    else:
        kind, step = (ipywidgets.IntSlider, 1) if whole else (ipywidgets.FloatSlider, (high - low) / 100)
        slider = kind(min=low, max=high, step=step, **look)
    slider.layout.width = "9em"
    _tie(slider, text)
    return text, ipywidgets.HBox([text, slider])


def _first_value(name, values, default):
    """Where a control starts: at the default, else at its first value. `ValueError` for what makes no control."""
    if isinstance(values, bool):
        return values if default is REQUIRED else bool(default)
    is_range = isinstance(values, tuple) and len(values) == 2 and all(type(end) in (int, float) for end in values)
    if not (is_range and values[0] < values[1]) and not (isinstance(values, list) and values):
        raise ValueError(f"{name}={values!r}: pass (lowest, highest), a list of choices, or True or False.")
    if default is REQUIRED:
        return values[0]
    if not (values[0] <= default <= values[1] if is_range else default in values):
        raise ValueError(f"{name}: the default, {default!r}, is not {'between' if is_range else 'one of'} {values}.")
    return default


def _is_log(values):
    """Rates: a range of floats that goes over a power of ten or more."""
    return type(values[1]) is float and values[0] > 0 and values[1] >= 10 * values[0]


def _tie(slider, text):
    """The number in the box is exact; a slider that is dragged gives two digits, and is not pushed while it is."""
    whole = isinstance(slider, ipywidgets.IntSlider)
    place = math.log10 if isinstance(slider, ipywidgets.FloatLogSlider) else float
    near = 0 if whole else 0.51 * slider.step

    def moved(change):
        if abs(place(change["new"]) - place(text.value)) <= near:
            return  # the browser only rounded what was typed to a place of the slider
        value = change["new"] if whole else float(f"{change['new']:.2g}")
        text.value = min(max(value, text.min), text.max)

    def typed(change):
        if abs(place(slider.value) - place(change["new"])) > near:
            slider.value = change["new"]

    slider.observe(moved, "value")
    text.observe(typed, "value")


def _sweep(values):
    """The values of a sweep: all choices, or some of a range with equal steps (equal factors for rates)."""
    if isinstance(values, (bool, list)):
        return values if isinstance(values, list) else [False, True]
    if _is_log(values):
        return [float(f"{value:.2g}") for value in numpy.geomspace(*values, POINTS)]
    steps = numpy.linspace(*values, POINTS).tolist()
    return sorted({round(step) for step in steps}) if type(values[1]) is int else steps


# ---- tune -----------------------------------------------------------------------------------------------


def tune(train, *, folder=None, **ranges):
    """A panel that runs `train` with the settings of its controls, and keeps each run as a record in `folder`.

    `train` is your own function with a parameter `callbacks`, to be passed to the Trainer; what it returns is
    `panel.result`. A range is (lowest, highest), of floats a power of ten apart for a logarithmic slider, a list of
    choices, or True or False; the defaults of `train` are where the controls start. Parameters without a range keep
    their default, and are recorded too. `folder` is `runs/tune/<name of train>` if not given; the runs that are in it
    already are in the history.

    `panel.start(learning_rate=3e-4)`, `start(seeds=3)` and `start(sweep="learning_rate")` do what the buttons do;
    `stop`, `wait`, `table`, `plot` and `code` are for the same purpose. Stop ends training at the next step;
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
    """The panel of `tune`."""

    def __init__(self, train, folder, ranges):
        self.train, self.ranges, self._fixed = train, ranges, _defaults_without_control(train, ranges)
        self.folder = Path(folder or Path(os.environ.get("HELPERS_RUNS", "runs")) / "tune" / train.__name__)
        self.records = record.load(self.folder) if list(self.folder.glob("*.json")) else []
        self.result = self.model = self._first = None
        parameters = inspect.signature(train).parameters
        ways = {"once": {}} | {f"sweep {name}": {"sweep": name} for name in ranges}
        if "seed" in parameters:
            ways["with three seeds"] = {"seeds": 3}
        self.way = ipywidgets.Dropdown(options=ways, description="run", tooltip="once, or queued")
        self.progress = ipywidgets.IntProgress(tooltip="progress of the run", layout={"width": "98%", "height": "1em"})
        self.chosen = ipywidgets.Dropdown(description="settings of", tooltip="the run to repeat", style=LABEL)
        self.use_button = ipywidgets.Button(description="Use these settings", tooltip="Print the code of that run")
        self.use_button.on_click(lambda _: self._use())
        self.code_text = ipywidgets.Text(description="code", tooltip="copy this into a cell", style=LABEL)
        self.code_text.layout.width = "98%"
        controls = {name: _control(name, values, parameters[name].default) for name, values in ranges.items()}
        using = ipywidgets.HBox([self.chosen, self.use_button])
        super().__init__(
            controls, "tuning-panel", "Start", before=[self.way], live=[self.progress], below=[using, self.code_text]
        )
        *self._earlier, last = self.records or [{}]
        self._curve = last.get("curve", [])  # a new panel shows the last run
        self._show_history()
        self._draw()

    @property
    def settings(self):
        """What the next run will be called with."""
        return {**super().settings, **self._fixed}

    def start(self, *, sweep=None, seeds=None, **settings):
        """Runs `train` in the background: once, over some seeds, or once for each value of a control."""
        self._set(settings)
        if sweep is None and seeds is None:
            sweep, seeds = self.way.value.get("sweep"), self.way.value.get("seeds")
        queue = [self.settings]
        if sweep is not None:
            self._existing(sweep)
            queue = [{**self.settings, sweep: value} for value in _sweep(self.ranges[sweep])]
        if (seeds or 1) > 1:
            if "seed" not in self.settings:
                raise ValueError("train has no parameter seed, so it cannot be repeated over seeds. Give it one.")
            queue = [{**run, "seed": run["seed"] + i} for run in queue for i in range(seeds)]
        return self._begin(partial(self._run_all, queue))

    def _run_all(self, queue, stop):
        for i, settings in enumerate(queue, 1):
            if stop.is_set():
                break
            self._run(settings, stop, f"run {i} of {len(queue)}, " if len(queue) > 1 else "")

    def _run(self, settings, stop, place):
        """One run and its record; the record is written whatever happens."""
        self._place, self._curve, self._first, self.result, outcome = place, [], None, None, "failed"
        self._earlier, self._next_look, self._next_drawing = list(self.records), 0.0, 0.0
        self._say(f"{place}starting")
        started = time.perf_counter()
        try:
            with contextlib.suppress(Stopped):
                self.result = self.train(**settings, callbacks=[_Watch(self, stop)])
            outcome = "stopped" if stop.is_set() else "finished"
        finally:
            seconds = round(time.perf_counter() - started, 2)
            path = record.save(
                self.folder, "run", settings=settings, metrics=_metrics(self._curve), curve=self._curve,
                seconds=seconds, machine=env.machine(), versions=env.versions(), outcome=outcome,
            )  # fmt: skip
            self.records.append(record.load(path))
            self._show_history()
            self._draw()
            self._say(f"{place}{outcome} after {seconds:.1f} s, saved as {path.name}")

    def _seen(self, step, last, model):
        """Called by the callback after each step: shows what can be seen of it, not more often than REDRAW_S."""
        now, self.model = time.perf_counter(), model
        self._first = self._first or (now, step)
        if now < self._next_look and step < last:
            return
        self._next_look = now + REDRAW_S
        self.progress.max, self.progress.value = last, step
        began, first = self._first
        left = f", {(now - began) / (step - first) * (last - step):.0f} s left" if step > first else ""
        self._say(f"{self._place}step {step} of {last}{left}")
        if time.process_time() >= self._next_drawing:
            self._draw()

    def _draw(self):
        """Shows the curve so far. That costs some 0.1 s of the processor, so the next drawing waits for its share."""
        began = time.thread_time()
        ends = {"training": _points(self._curve, "loss")[-1:], "validation": _points(self._curve, "eval_loss")[-1:]}
        words = [f"{name} loss {loss:.3f} at step {step}" for name, end in ends.items() for step, loss in end]
        self._show_chart(f"{', '.join(words) or 'no loss yet'}; {len(self._earlier)} earlier runs in grey")
        self._next_drawing = time.process_time() + (time.thread_time() - began) / SHARE

    def _chart(self, ax):
        """The loss over the steps, in front of earlier runs. A run that diverges does not flatten the others: what is
        above twice the usual loss at the start is cut off."""
        ax.set_position((0.09, 0.16, 0.89, 0.74))  # a layout that is worked out takes half as long again
        earlier = [run.get("curve") or [] for run in self._earlier]
        for curve in earlier:
            for key in ("loss", "eval_loss"):
                ax.plot(*zip(*_points(curve, key), strict=True), color="#BBBBBB", linewidth=1)
        if any(_points(self._curve, key) for key in ("loss", "eval_loss")):
            plots.learning_curves(self._curve, ax)
        starts = [loss for curve in [*earlier, self._curve] for _, loss in _points(curve, "loss")[:1]]
        if starts:
            ax.set_ylim(0, min(ax.get_ylim()[1], 2 * statistics.median(starts)))
        return ax

    def _rows(self):
        return [
            {"run": run["name"], "outcome": run.get("outcome"), "seconds": run.get("seconds")}
            | {name: run["settings"].get(name) for name in self.settings}
            | run["metrics"]
            for run in self.records
        ]

    def _show_history(self):
        super()._show_history()
        self.chosen.options = [run["name"] for run in reversed(self.records)]
        self.chosen.index = None  # new options leave the list in the browser without a choice
        self.chosen.index = 0 if self.records else None

    def _use(self):
        """The code of the chosen run; the controls go to its settings."""
        self.code_text.value = self.code(self.chosen.value)
        settings = self._settings_of(self.chosen.value)
        self._set({name: settings[name] for name in self.controls if name in settings})

    def _settings_of(self, name):
        for run in self.records:
            if run["name"] == name:
                return run["settings"]
        raise ValueError(f"there is no run {name!r} in {self.folder.name}: pass the name in the table.")

    def code(self, name=None):
        """The line that repeats a run (of this name; else with the settings of the controls) without the panel."""
        settings = self.settings if name is None else self.settings | self._settings_of(name)
        arguments = "".join(f"{name}={value!r}, " for name, value in settings.items())
        return f"result = {self.train.__name__}({arguments}callbacks=[])"

    def plot(self, title=None):
        """The curves of all runs, named with the settings that differ, as a chart; for the main thread."""
        runs = [run for run in self.records if run["curve"]]
        differ = [name for name in self.settings if len({str(run["settings"].get(name)) for run in runs}) > 1]
        curves = {
            ", ".join([run["name"], *(f"{name} {run['settings'].get(name)}" for name in differ)]): run["curve"]
            for run in runs
        }
        return plots.learning_curves(curves, title=title)


def _defaults_without_control(train, ranges):
    """The defaults of the parameters that have no control; an error for a signature that cannot be called."""
    parameters = inspect.signature(train).parameters
    if "callbacks" not in parameters:
        raise ValueError(f"{train.__name__} has no parameter callbacks. Add it, and pass it to Trainer(callbacks=...).")
    if unknown := ", ".join(name for name in ranges if name not in parameters):
        raise ValueError(f"{train.__name__} has no parameter {unknown}: it has {', '.join(parameters)}.")
    rest = {name: one.default for name, one in parameters.items() if name not in (*ranges, "callbacks")}
    missing = [name for name, default in rest.items() if default is REQUIRED]
    if missing:
        raise ValueError(f"{', '.join(missing)} of {train.__name__}: give a range here, or a default there.")
    return rest


class _Watch(transformers.TrainerCallback):
    """What a panel gives to the Trainer: it sees each step and each log, and can stop."""

    def __init__(self, panel, stop):
        self.panel, self.stop = panel, stop

    def on_train_begin(self, args, state, control, model=None, **more):
        self.panel._seen(state.global_step, state.max_steps, model)

    def on_step_end(self, args, state, control, model=None, **more):
        self.panel._seen(state.global_step, state.max_steps, model)
        self.on_substep_end(args, state, control)

    def on_substep_end(self, args, state, control, **more):
        control.should_training_stop |= self.stop.is_set()

    def on_epoch_end(self, args, state, control, **more):
        if self.stop.is_set():  # who presses Stop does not wait for an evaluation
            control.should_evaluate = control.should_save = False

    def on_prediction_step(self, args, state, control, **more):
        if self.stop.is_set():
            raise Stopped

    def on_log(self, args, state, control, logs=None, **more):
        self.panel._curve.append({**logs, "step": state.global_step})


def _metrics(curve):
    """The last value of each metric of a run: those of the evaluations, and the mean loss of training."""
    last = {key: value for row in curve for key, value in row.items()}
    timed = ("_runtime", "_per_second", "_model_preparation_time")
    return {k: v for k, v in last.items() if k.startswith(("eval_", "train_loss")) and not k.endswith(timed)}


def _points(curve, key):
    """(step, loss) of the finite losses of a curve."""
    return [(row["step"], row[key]) for row in curve if row.get(key) is not None and math.isfinite(row[key])]


# ---- will_it_fit ----------------------------------------------------------------------------------------


def will_it_fit(**settings):
    """A panel that predicts the peak memory of a training by part, against the memory of a GPU.

    `model` is one of `SHAPES`, a name in `data/models`, a folder or a Hub id; `gpu` one of `GPUS`; `method` full,
    LoRA or QLoRA (on all linear layers); then `rank`, `batch`, `length`, `precision`, `checkpointing` and `optimizer`.
    Each may be given here, or to `panel.start(...)`. What does not fit gets the smallest change that does: smaller
    batches, checkpointing, LoRA, QLoRA, shorter rows, in this order. A newer setting wins over a prediction under way;
    predictions are kept.

    `panel.prediction`, `panel.fit` and `panel.change` are the answer, `panel.plot()` draws it.

    >>> panel = will_it_fit(model="7B Llama", method="QLoRA", gpu="T4 (16 GB)")
    >>> panel.settings["method"], panel.settings["batch"]
    ('QLoRA', 1)

    Taught in notebooks/03_full_fine_tuning.ipynb, "Will it fit? Play".
    """
    return _Fitting(settings)


class _Fitting(_Panel):
    """The panel of `will_it_fit`."""

    plain_errors, newest_wins = (ValueError,), True  # memory says what is wrong in a sentence

    def __init__(self, settings):
        model = ipywidgets.Combobox(value="7B Llama", options=list(SHAPES), description="model", style=LABEL)
        model.tooltip, model.continuous_update = "a size of this list, a folder, or a Hub id", False
        model.layout.width = "27em"
        controls = {
            "model": (model, model),
            "gpu": _control("gpu", list(GPUS), "RTX 4090 (24 GB)"),
            "method": _control("method", list(METHODS), "LoRA"),
            "rank": _control("rank", (1, 256), 16),
            "batch": _control("batch", (1, 128), 1),
            "length": _control("length", (16, 8192), 512),
            "precision": _control("precision", list(PRECISIONS), "all bf16"),
            "checkpointing": _control("checkpointing", False),
            "optimizer": _control("optimizer", list(memory.OPTIMIZERS)),
        }
        super().__init__(controls, "fitting-panel", "Predict")
        self.prediction = self.fit = self.change = None
        self._known = {}  # predictions by their settings
        self._set(settings)
        for control in self.controls.values():
            control.observe(lambda _: self.start(), "value")

    def _work(self, settings, stop):
        if stop.wait(0.05):  # while a slider is dragged, only where it rests counts
            raise Stopped
        self._say(f"predicting: {_question(settings)} …")
        prediction, capacity = self._predict(settings, stop), GPUS[settings["gpu"]]
        self.prediction, self.fit, self.change = prediction, memory.fits(prediction, capacity, suggest=False), None
        answer = {"run": len(self.answers) + 1, **settings, "peak_gib": prediction.peak_gib, "fits": self.fit.answer}
        self.answers.append(answer)
        self._show_chart(self._sentence())
        if self.fit.answer != "yes":
            self._say(f"{self._sentence()} Looking for the smallest change that makes it fit …")
            self.change, _, _ = memory.smallest_change(
                lambda change: self._predict(settings | change, stop),
                capacity,
                batch=settings["batch"],
                length=settings["length"],
                checkpointing=None if settings["checkpointing"] else {"checkpointing": True},
                methods=[{"method": method} for method in METHODS[METHODS.index(settings["method"]) + 1 :]],
            )
            change = ", ".join(f"{name} {value}" for name, value in (self.change or {}).items())
            answer["fits with"] = change.replace("_", " ") or "no change that was tried"
        self._show_history()
        self._say(self._sentence())

    def _predict(self, settings, stop):
        """The prediction, a known one if these settings were asked before; `Stopped` if nobody waits for it."""
        key = json.dumps({name: value for name, value in settings.items() if name != "gpu"})
        if key not in self._known:
            self._known[key] = memory.predict(**_arguments(settings))
        if stop.is_set():
            raise Stopped
        return self._known[key]

    def _sentence(self):
        answer = self.answers[-1]
        change = f" It fits with: {answer['fits with']}." if "fits with" in answer else ""
        return f"{_question(answer)}: {self.fit.answer}, {self.fit.why}{change}"

    def _chart(self, ax):
        settings = self.answers[-1]
        bars, title = {" ": {"predicted": self.prediction.split}}, f"{_question(settings)}: {self.fit.answer}"
        plots.memory(bars, ax, capacity=GPUS[settings["gpu"]], title=title)
        ax.set_yticks([])
        return ax


def _question(settings):
    rank = "" if settings["method"] == "full" else f" r={settings['rank']}"
    size = f"{settings['batch']} x {settings['length']}"
    return f"{Path(settings['model']).name}, {settings['method']}{rank}, {size}, on {settings['gpu']}"


def _arguments(settings):
    """The settings of the panel as arguments of `memory.predict`."""
    model, arguments = settings["model"], dict(PRECISIONS[settings["precision"]])
    if model in SHAPES:
        kind, sizes = SHAPES[model]
        model = transformers.AutoConfig.for_model(kind, **sizes)
    elif (ours := env.DATA / "models" / model).is_dir():
        model = ours
    if settings["method"] != "full":
        arguments["peft"] = peft.LoraConfig(r=settings["rank"], target_modules="all-linear")
    if settings["method"] == "QLoRA":
        four_bit = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        compute = arguments.get("autocast") or arguments["dtype"]
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(**four_bit, bnb_4bit_compute_dtype=compute)
    sizes = {name: settings[name] for name in ("batch", "length", "gradient_accumulation_steps") if name in settings}
    checkpointing = {"activation_checkpointing": settings["checkpointing"]}
    return arguments | sizes | checkpointing | {"model": model, "optim": settings["optimizer"]}


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

    Taught in notebooks/more/02b_encoder_decoder.ipynb, "Decode by hand".
    """
    return _Decoding(model, tokenizer, {"prompt": prompt, **settings})


class _Decoding(_Panel):
    """The panel of `decode`."""

    def __init__(self, model, tokenizer, settings):
        self.model, self.tokenizer, self.tokens = model, tokenizer, []
        prompt = ipywidgets.Textarea(description="prompt", tooltip="what the model is asked", rows=4, style=LABEL)
        prompt.layout.width = "27em"
        ranges = dict(
            temperature=((0.0, 2.0), 0.0), top_p=((0.05, 1.0), 1.0), top_k=((0, 100), 0), num_beams=((1, 8), 1),
            repetition_penalty=((0.5, 2.0), 1.0), length_penalty=((-2.0, 2.0), 1.0),
            no_repeat_ngram_size=((0, 5), 0), max_new_tokens=((1, 200), 48), seed=((0, 999), 0),
            show_token=((1, 20), 1),
        )  # fmt: skip
        controls = {name: _control(name, values, value) for name, (values, value) in ranges.items()}
        super().__init__({"prompt": (prompt, prompt), **controls}, "decoding-panel", "Generate")
        self._set(settings)

    def _work(self, settings, stop):
        self._say("writing …")
        prompt, options = settings["prompt"], _options(settings)
        criteria = [lambda ids, _, **more: torch.full((len(ids),), stop.is_set(), device=ids.device)]
        with torch.random.fork_rng():
            torch.manual_seed(settings["seed"])
            at = settings["show_token"]
            self.tokens = generate.next_tokens(self.model, self.tokenizer, prompt, at=at, **options)
            torch.manual_seed(settings["seed"])
            options |= {"return_stopped": True, "stopping_criteria": criteria}
            (answer,), (ended,) = generate.texts(self.model, self.tokenizer, [prompt], **options)
        outcome = "stopped" if stop.is_set() else "ended by itself" if ended else "cut at max_new_tokens"
        self.answers.append({"run": len(self.answers) + 1, **settings, "answer": answer, "outcome": outcome})
        self._show_history()
        chances = ", ".join(f"{token['token']} {token['kept']:.2f}" for token in self.tokens)
        self._show_chart(f"next token: {chances}")
        self._say(outcome)

    def _chart(self, ax):
        names, places = [repr(token["token"]) for token in self.tokens], range(len(self.tokens))
        kept, of_model = ([token[key] for token in self.tokens] for key in ("kept", "probability"))
        ax.barh(places, kept, 0.5, color=plots.CLASSES[0], label="with these settings")
        ax.barh(places, of_model, 0.8, color="none", edgecolor="#333333", label="of the model")
        ax.set_yticks(places, names, parse_math=False)
        ax.set_xlim(0, 1)
        ax.invert_yaxis()
        ax.legend(fontsize=9, edgecolor="none")
        after = self.tokens[0]["after"] or "(nothing)"
        ax.set_xlabel(f"probability of the answer's next token after: {after}", parse_math=False)
        ax.spines[["top", "right"]].set_visible(False)
        return ax


def _options(settings):
    """What `model.generate` gets of the settings of the panel."""
    options = {name: value for name, value in settings.items() if name not in ("prompt", "seed", "show_token")}
    options["do_sample"] = options["temperature"] > 0
    if not options["do_sample"]:
        options |= {"temperature": None, "top_p": None, "top_k": None}
    if options["num_beams"] == 1:
        options.pop("length_penalty")  # of whole beams
    return options
