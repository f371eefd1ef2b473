"""Charts take an `ax` and return it, show nothing by themselves, and their text fits the figure."""

import base64
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from helpers import plots

ROOT = Path(plots.__file__).parents[1]
CURVE = [
    *({"step": s, "epoch": s / 50, "loss": 1 / s} for s in range(1, 100, 5)),
    *({"step": s, "epoch": s / 50, "eval_loss": 2 / s, "eval_accuracy": 1 - 1 / s} for s in (25, 50, 75, 100)),
    {"step": 100, "train_loss": 0.3, "train_runtime": 2.0},
]
INTENTS = [f"a_rather_long_intent_{i}" for i in range(10)]
SCORES = [("majority", 0.34), ("TF-IDF + logistic regression", 0.62, 0.58, 0.66), ("fine-tuned", (0.82, 0.79, 0.85))]
CHARTS = {
    "one curve": (plots.learning_curves, [CURVE], {}),
    "three curves": (plots.learning_curves, [{f"rate {i}": CURVE for i in range(3)}], {}),
    "accuracy by epoch": (plots.learning_curves, [CURVE], {"y": "accuracy", "x": "epoch"}),
    "confusion of 2": (plots.confusion, [[[5, 1], [0, 3]], ["no", "yes"]], {}),
    "confusion of 3": (plots.confusion, [np.arange(9).reshape(3, 3) * 111, ["negative", "neutral", "positive"]], {}),
    "confusion of 10": (plots.confusion, [np.arange(100).reshape(10, 10), INTENTS], {}),
    "scores": (plots.scores, [SCORES], {"chance": 1 / 3}),
    "scores in groups": (plots.scores, [{"same wording": SCORES, "handwritten": SCORES}], {"chance": 1 / 3}),
}


@pytest.fixture(autouse=True)
def _no_window(monkeypatch):
    with mpl.rc_context():
        plt.switch_backend("Agg")
        monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("a chart called show"))
        yield
        plt.close("all")


@pytest.mark.parametrize("chart", CHARTS)
def test_chart_makes_a_figure_that_its_text_fits(chart, tmp_path):
    function, inputs, options = CHARTS[chart]
    ax = function(
        *inputs, title="What this chart shows, said in a sentence that is longer than most titles are", **options
    )
    figure = ax.figure
    assert isinstance(ax, mpl.axes.Axes)
    assert figure.get_figwidth() <= 9.01
    assert figure.get_dpi() == 100
    figure.canvas.draw()
    drawn = figure.get_tightbbox()  # in inches; of what is seen, so without ticks beyond the limits
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= figure.get_figwidth()
    assert drawn.y1 <= figure.get_figheight()
    assert min(text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()) >= 8
    figure.savefig(tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size < 150_000


@pytest.mark.parametrize("chart", CHARTS)
def test_chart_draws_on_the_ax_it_is_given(chart):
    function, inputs, options = CHARTS[chart]
    figure = mpl.figure.Figure()  # no pyplot: as in a thread behind a button
    ax = figure.subplots()
    assert function(*inputs, ax=ax, **options) is ax
    assert not plt.get_fignums()
    assert ax.get_title(loc="left") == ""


def test_colours_have_one_meaning_each():
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert len(set(plots.CLASSES)) == len(plots.CLASSES)


def test_import_is_light():
    code = "import sys; from helpers import plots; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_learning_curves_leave_gaps_and_start_at_zero():
    ax = plots.learning_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("inf")}])
    (line,) = ax.get_lines()
    assert np.isnan(line.get_ydata()).tolist() == [False, True, True]
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylabel() == "loss (nats)"
    with pytest.raises(ValueError, match='no curve has "f1" or "eval_f1" together with "step"'):
        plots.learning_curves(CURVE, y="f1")


def test_confusion_counts_rows_as_true_classes():
    names = ["no", "yes"]
    predictions, references = [0, 1, 1, 1], [0, 0, 0, 1]
    for inputs in (
        (predictions, references),
        tuple([names[i] for i in side] for side in (predictions, references)),
        np.array([[1, 2], [0, 1]]),
    ):
        ax = plots.confusion(inputs, names)
        assert [text.get_text() for text in ax.texts] == ["1\n33%", "2\n67%", "", "1\n100%"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["no (3)", "yes (1)"]
    with pytest.raises(ValueError, match="3 names but a matrix of 2 rows"):
        plots.confusion([[1, 2], [0, 1]], [*names, "maybe"])
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        plots.confusion(([0], [0, 1]), names)
    with pytest.raises(IndexError):
        plots.confusion(([0], [2]), names)


def test_confusion_of_a_class_without_rows():
    ax = plots.confusion([[0, 0], [1, 3]], ["no", "yes"])
    assert ax.texts[0].get_text() == ""


def test_scores_start_at_zero():
    assert plots.scores(SCORES).get_xlim() == (0, 1)
    assert plots.scores([("seconds", 12.0)], xlabel="time (s)").get_xlim() == pytest.approx((0, 13.2))
    with pytest.raises(ValueError, match="is not \\(name, value\\)"):
        plots.scores([("a", 0.1, 0.2)])
    with pytest.raises(ValueError, match="no rows to draw"):
        plots.scores([])


def test_a_picture_is_shown_with_what_it_says(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    plots.show(plots.scores(SCORES), "Fine-tuned is ahead.")
    ((data, options),) = shown
    assert data["text/plain"] == options["metadata"]["image/png"]["alt"] == "Fine-tuned is ahead."
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert not plt.get_fignums(), "a notebook would show it twice"
