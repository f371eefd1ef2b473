"""The charts of memory: whole numbers of bytes go in, and each colour, outline and unit is what the chart says."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from helpers import memory, plots

GIB = 2**30
SPLIT = {part: (i + 1) * GIB // 2 for i, part in enumerate(plots.PARTS)}
POINTS = [
    {"step": step, "phase": phase, "bytes": size * GIB}
    for step in (1, 2)
    for phase, size in (("forward", 2), ("backward", 3), ("step", 2.5))
]
CHARTS = {
    "one bar": (plots.memory, [{"full": {"predicted": SPLIT}}], {}),
    "pairs": (
        plots.memory,
        [{name: {"predicted": SPLIT, "measured": SPLIT} for name in ("full fine-tuning", "LoRA, all linear layers")}],
        {"capacity": 16, "source": "measured on cuda: the allocator"},
    ),
    "timeline": (plots.timeline, [POINTS], {"predicted": POINTS, "capacity": 4, "source": "live tensors"}),
    "long timeline": (plots.timeline, [[point | {"step": s} for s in range(1, 60) for point in POINTS[:3]]], {}),
    "sweep": (plots.sweep, [{1: GIB, 2: 2 * GIB, 4: 3 * GIB}], {"measured": {1: GIB}, "capacity": 2}),
    "against": (plots.against, [{"PEFT": [(20.8, 20.5), (36.2, 37.0)], "QLoRA on a T4": [(1.8, 1.78)]}], {}),
    "sweeps": (plots.sweep, [{"full": {128: GIB, 512: 3 * GIB}, "LoRA": {128: GIB // 3}}], {"x": "length"}),
}


@pytest.fixture(autouse=True)
def _no_window():
    with mpl.rc_context():
        plt.switch_backend("Agg")
        yield
        plt.close("all")


@pytest.mark.parametrize("chart", CHARTS)
def test_chart_fits_its_figure(chart):
    function, inputs, options = CHARTS[chart]
    ax = function(*inputs, title="What this chart shows, said in a sentence longer than most titles", **options)
    figure = ax.figure
    figure.canvas.draw()
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= figure.get_figwidth()
    assert drawn.y1 <= figure.get_figheight()
    legend = ax.get_legend()
    if function is plots.memory:  # the legend has room of its own below the bars
        lowest = min(bar.get_window_extent().y0 for bar in ax.patches)
        assert legend.get_window_extent().y1 <= lowest
        assert legend.get_window_extent().x1 <= figure.get_window_extent().x1


@pytest.mark.parametrize("chart", CHARTS)
def test_chart_draws_on_the_ax_it_is_given(chart):
    function, inputs, options = CHARTS[chart]
    ax = mpl.figure.Figure().subplots()
    assert function(*inputs, ax=ax, **options) is ax
    assert not plt.get_fignums()


def test_parts_are_those_of_memory():
    assert tuple(plots.PARTS) == memory.PARTS


def test_memory_stacks_hollow_and_solid():
    split = {"weights": GIB, "gradients": 2 * GIB}
    ax = plots.memory({"full": {"measured": split, "predicted": split}}, capacity=24)
    bars = [bar for bar in ax.patches if bar.get_width()]
    assert [bar.get_width() for bar in bars] == [1, 2, 1, 2]
    assert [bar.get_x() for bar in bars] == [0, 1, 0, 1]
    hollow, solid = bars[:2], bars[2:]
    colours = [plots.COLOURS["weights"].lower(), plots.COLOURS["gradients"].lower()]
    assert [to_hex(bar.get_facecolor()) for bar in hollow] == ["#ffffff"] * 2
    assert [to_hex(bar.get_edgecolor()) for bar in hollow] == colours
    assert [to_hex(bar.get_facecolor()) for bar in solid] == colours
    assert [text.get_text() for text in ax.texts] == [" 3.00", " 3.00", " device: 24 GiB "]
    (line,) = ax.get_lines()
    assert (line.get_linestyle(), line.get_xdata()[0]) == ("--", 24)
    assert ax.get_xlim()[1] > 24


def test_small_sizes_are_in_mib():
    ax = plots.memory({"tiny": {"measured": {"weights": 5 * 2**20}}}, source="live tensors")
    assert ax.get_xlabel() == "peak memory (MiB)\nlive tensors"
    assert plots.sweep({1: 2**20}).get_ylabel() == "peak memory (MiB)"


def test_memory_refuses_what_it_has_no_colour_for():
    with pytest.raises(ValueError, match="no part of memory is called cache; the parts are weights"):
        plots.memory({"full": {"predicted": {"cache": 1}}})
    with pytest.raises(ValueError, match="no bars"):
        plots.memory({})


def test_timeline_gives_each_step_the_same_width():
    ax = plots.timeline(POINTS)
    assert [bar.get_x() for bar in ax.patches] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    assert [bar.get_height() for bar in ax.patches] == [2, 3, 2.5] * 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["forward", "backward", "step"]
    assert ax.get_ylim()[0] == 0
    with pytest.raises(ValueError, match="no points"):
        plots.timeline([])


def test_against_draws_a_dot_for_each_run_and_a_band():
    ax = plots.against({"a": [(10, 11), (20, 20)], "b": [(5, 5)]}, percent=10)
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [[11, 20], [5]]
    (band,) = ax.collections
    assert band.get_datalim(ax.transData).y0 == pytest.approx(0.9 * 0.9 * 5)
    assert "within 10 %" in [text.get_text() for text in ax.get_legend().get_texts()]
    with pytest.raises(ValueError, match="no runs"):
        plots.against({"a": []})


def test_sweep_draws_measurements_solid_without_a_line():
    ax = plots.sweep({4: 2 * GIB, 1: GIB}, measured={1: GIB}, capacity=8)
    predicted, measured, capacity = ax.get_lines()
    assert list(predicted.get_xdata()) == [1, 4]
    assert predicted.get_markerfacecolor() == "white"
    assert (measured.get_linestyle(), measured.get_markerfacecolor()) == ("None", plots.CLASSES[0])
    assert capacity.get_linestyle() == "--"
    with pytest.raises(ValueError, match="no values"):
        plots.sweep({})
