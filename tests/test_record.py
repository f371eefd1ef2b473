"""A record is valid JSON, never overwrites another one, carries nothing of this machine, and tabulates."""

import enum
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import record
from helpers.metrics import Interval

ROOT = Path(record.__file__).parents[1]


def run(**changes):
    return {"settings": {"rate": 2e-5, "seed": 0}, "metrics": {"accuracy": 0.81}} | changes


# ---- Saving and loading ----


def test_what_is_saved_is_loaded(tmp_path):
    curve = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}]
    path = record.save(
        tmp_path / "new", "a", **run(), curve=curve, seconds=1.5, peak_gib=0.25, machine={"cores": 2}, note="é"
    )
    expected = run(name="a", curve=curve, seconds=1.5, peak_gib=0.25, machine={"cores": 2}, note="é")
    assert record.load(path) == expected
    assert record.load(path.parent) == [expected]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert '    {"step": 10, "loss": 1.0},' in lines  # one line for a point of the curve
    assert '    "rate": 2e-05,' in lines
    assert "peak_gib" not in record.save(tmp_path, "b", **run()).read_text()  # what was not measured is not there


def test_order_of_keys_does_not_matter(tmp_path):
    one = record.save(tmp_path, "a", settings={"b": 1, "a": {"d": 1, "c": 2}}, metrics={}, z=1, y=2)
    two = record.save(tmp_path, "a", y=2, z=1, metrics={}, settings={"a": {"c": 2, "d": 1}, "b": 1})
    assert one.read_text() == two.read_text()
    assert list(json.loads(one.read_text())) == ["settings", "metrics", "y", "z"]


def test_never_overwrites(tmp_path):
    paths = [record.save(tmp_path, "a", **run(metrics={"i": i})) for i in range(11)]
    assert [path.name for path in paths[:3]] == ["a.json", "a-2.json", "a-3.json"]
    assert [loaded["metrics"]["i"] for loaded in record.load(tmp_path)] == list(range(11))  # a-2 before a-10


def test_two_processes_never_overwrite(tmp_path):
    code = f"""
from helpers import record
for i in range(100):
    record.save({str(tmp_path)!r}, "a", settings={{}}, metrics={{"i": i}})
"""
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(r["metrics"]["i"] for r in record.load(tmp_path)) == sorted([*range(100), *range(100)])


def test_numbers_of_other_libraries_become_plain(tmp_path):
    import torch

    class Strategy(enum.Enum):
        EPOCH = "epoch"

    path = record.save(
        tmp_path,
        "a",
        settings={
            "lora": {"target_modules": {"b", "a"}},
            "when": Strategy.EPOCH,
            1: True,
        },
        metrics={
            "numpy": np.float32(0.5),
            "torch": torch.tensor(0.25),
            "bf16": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
            "flag": np.bool_(True),
            "interval": Interval(0.5, 0.4, 0.6),
            "nan": math.nan,
            "inf": np.array([np.inf, 1.0]),
        },
        curve=[{"step": np.int64(3), "loss": torch.tensor(math.nan)}],
    )
    loaded = json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert loaded["settings"] == {
        "lora": {"target_modules": ["a", "b"]},
        "when": "epoch",
        "1": True,
    }
    assert loaded["metrics"] == {
        "numpy": 0.5,
        "torch": 0.25,
        "bf16": [1.0, 2.0],
        "flag": True,
        "interval": {"value": 0.5, "low": 0.4, "high": 0.6},
        "nan": None,
        "inf": [None, 1.0],
    }
    assert loaded["curve"] == [{"step": 3, "loss": None}]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text().filter(lambda t: "/" not in t and "\\" not in t),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(value=JSON)
def test_whatever_is_saved_is_valid_json(tmp_path_factory, value):
    path = record.save(tmp_path_factory.getbasetemp(), "a", settings={"x": value}, metrics={}, curve=[{"y": value}])
    loaded = record.load(path)
    path.unlink()
    plain = json.loads(json.dumps(value), parse_constant=lambda _: None)
    assert loaded["settings"] == {"x": plain}
    assert loaded["curve"] == [{"y": plain}]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/ann/project", "project"),
        ("/home/ann/my models/tiny one/", "tiny one"),
        ("~/project", "project"),
        ("~/", "~"),
        (r"C:\Users\ann", "ann"),
        (Path("/a/b"), "b"),
        ("file:/x", "x"),
        (Path("data/reviews"), "data/reviews"),
    ],
)
def test_of_a_path_of_this_machine_the_last_part_is_kept(tmp_path, text, kept):
    saved = record.save(tmp_path, "a", **run(settings={"model": text}))
    assert record.load(saved)["settings"]["model"] == kept


@pytest.mark.parametrize("text", ["saved in /tmp/x/y", "path=/srv/main/data", "('/home/ann/project')"])
def test_a_path_within_a_text_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"settings\.data\.model names a path of this machine"):
        record.save(tmp_path, "a", **run(settings={"data": {"model": text}}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["org/name", "tiny-encoder", "3/4 of rows", "a / b", "https://example.org/a/b", "and/or", "/"]
)
def test_what_only_resembles_a_path_is_kept(tmp_path, text):
    assert record.load(record.save(tmp_path, "a", **run(settings={"x": text})))["settings"]["x"] == text


def test_errors_of_save(tmp_path):
    for name in ("a/b", "../a", "", ".hidden", "a b", "a.json"):
        with pytest.raises(ValueError, match="use letters, digits"):
            record.save(tmp_path, name, **run())
    with pytest.raises(ValueError, match=r"settings\.model is object, which JSON cannot hold"):
        record.save(tmp_path, "a", **run(settings={"model": object()}))
    with pytest.raises(ValueError, match="metrics is float; pass a dict"):
        record.save(tmp_path, "a", **run(metrics=0.5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"settings": {}, ', r"bad\.json is not valid JSON"),
        (b"", r"bad\.json is not valid JSON"),
        (b"\xff\xfe", r"bad\.json is not valid JSON"),
        (b"[1]", r"bad\.json is no record: it has no settings and no metrics"),
        (b'{"settings": {}}', r"bad\.json is no record: it has no metrics"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    record.save(tmp_path, "a", **run())
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        record.load(tmp_path)


def test_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no records"):
        record.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no record"):
        record.load(tmp_path / "a.json")


def test_import_is_light():
    code = "import sys; from helpers import record; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- Tables ----


def test_table_is_a_dataframe_that_shows_as_markdown_and_html():
    rows = [{"name": "a|b", "n": 12000, "note": None, "x": "<b>"}, {"name": "c", "n": 5, "x": [1, 2]}]
    table = record.show(rows)
    assert str(table).splitlines() == [
        "| name   |      n |   note | x    |",
        "|:-------|-------:|-------:|:-----|",
        "| a\\|b   | 12,000 |      — | <b>  |",
        "| c      |      5 |      — | 1, 2 |",
    ]
    html = table._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert '<td style="text-align: right;">12,000</td>' in html
    assert '<td style="text-align: left;">a|b' in html
    assert isinstance(table, pd.DataFrame)
    assert table["n"].sum() == 12005
    assert type(table.sort_values("n")) is pd.DataFrame  # which looks as pandas has it
    assert str(record.show([])) == record.show([])._repr_html_().strip() == ""


def test_a_long_cell_shows_whole():
    claim = "LoRA reaches full fine-tuning on the words that the labels showed, and is ahead on the words they did not."
    table = record.show([{"claim": claim, "found": "holds"}])
    assert claim in str(table)
    assert claim in table._repr_html_()


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.8125, 0.9], ["0.812", "0.900"]),
        ([2e-5, 1e-3], ["2e-05", "0.001"]),
        ([1e-5, 0.123456], ["1e-05", "0.123"]),
        ([1.0, 2.5], ["1.0", "2.5"]),
        ([1.0, 3.0], ["1.0", "3.0"]),
        ([123456.5, 2], ["123,456.5", "2.0"]),
        ([True, False], ["True", "False"]),
        ([1, None], ["1", "—"]),
        ([0.0, 0.33333], ["0.000", "0.333"]),
        ([float("nan"), 1.0], ["nan", "1.0"]),
        ([float("inf"), 0.5], ["inf", "0.5"]),
        ([None, None], ["—", "—"]),
        ([np.float32(0.5), np.int64(3), None], ["0.5", "3.0", "—"]),
        (["a", 0.5, None], ["a", "0.5", "—"]),
        ([Interval(0.8, 0.75, 0.853), None], ["0.80 [0.75, 0.85]", "—"]),
    ],
)
def test_numbers_show_short(values, shown):
    table = record.show([{"x": value} for value in values])
    assert [line.strip("| ") for line in str(table).splitlines()[2:]] == shown


def test_what_a_column_holds_stays_exact():
    table = record.show([{"rank": 4, "score": 0.123456, "seed": 0}, {"score": 0.5, "seed": 1}], {"score": ".1%"})
    assert table["score"].tolist() == [0.123456, 0.5]
    assert table.to_dict("records")[0] == {"rank": 4, "score": 0.123456, "seed": 0}
    assert table["rank"].tolist() == [4, None]  # not 4.0 and nan
    assert "| 12.3% |" in str(table).replace("   ", " ")


def test_table_headings_formats_and_errors():
    interval = {"value": 0.9, "low": 0.8, "high": 0.95}
    runs = [run(name="a", machine={"cores": 2}), run(name="b", metrics={"accuracy": interval, "f1": 0.5})]
    table = record.table(runs, {"name": "run", "metrics.accuracy": ("right", ".0%"), "metrics.f1": "F1"})
    assert list(table) == ["run", "right", "F1"]
    assert "| a     |     81% |    — |" in str(table)
    assert table["right"].tolist() == [0.81, 0.9]
    assert record.table(runs, ["metrics.accuracy.low"])["accuracy.low"].tolist() == [None, 0.8]
    assert record.table(runs, ["settings.seed", "metrics.f1"]).to_dict("records")[1] == {"seed": 0, "f1": 0.5}
    assert list(record.table([run(x={"seed": 1})], ["settings.seed", "x.seed"])) == ["settings.seed", "x.seed"]
    with pytest.raises(ValueError, match=r'no run has "metrics.acc" \(closest: metrics.accuracy\)'):
        record.table(runs, ["metrics.acc"])
    with pytest.raises(ValueError, match=r'no run has "f1" \(closest: metrics.f1\)'):
        record.table(runs, ["f1"])


def test_summarise_over_seeds():
    runs = [
        run(settings={"rate": rate, "seed": seed}, metrics={"accuracy": value})
        for rate, values in {1e-4: [0.8, 0.9, 1.0], 1e-3: [0.5, None]}.items()
        for seed, value in enumerate(values)
    ]
    table = record.summarise(runs, by="settings.rate", metric="metrics.accuracy")
    assert table["mean"].idxmax() == 0
    first, second = table.to_dict("records")
    expected = {"rate": 1e-4, "n": 3, "mean": 0.9, "sd": 0.1, "lowest": 0.8, "highest": 1.0, "failed": 0}
    assert first == pytest.approx(expected)
    assert second == {"rate": 1e-3, "n": 1, "mean": 0.5, "sd": None, "lowest": 0.5, "highest": 0.5, "failed": 1}
    assert "failed" not in record.summarise(runs[:3], by=["settings.rate"], metric="metrics.accuracy")


def test_a_text_that_begins_with_one_path_of_several_is_refused(tmp_path):
    with pytest.raises(ValueError, match="names a path of this machine"):
        record.save(tmp_path, "run", settings={"note": "/data/a.csv and /data/b.csv"}, metrics={})


def test_what_utf8_cannot_hold_is_escaped_and_leaves_no_broken_file(tmp_path):
    path = record.save(tmp_path, "run", settings={"text": "half \ud800 of a pair"}, metrics={})
    assert record.load(path)["settings"]["text"] == "half \ud800 of a pair"


def test_two_keys_that_are_the_same_as_text_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.scores has two keys"):
        record.save(tmp_path, "run", settings={}, metrics={"scores": {1: 0.5, "1": 0.7}})
    assert not list(tmp_path.iterdir())


def test_a_set_of_mixed_kinds_is_a_list(tmp_path):
    path = record.save(tmp_path, "run", settings={"layers": {"all", 3}}, metrics={})
    assert record.load(path)["settings"]["layers"] == [3, "all"]


def test_nan_in_a_record_that_others_wrote_is_a_failed_run(tmp_path):
    (tmp_path / "run.json").write_text('{"settings": {"rate": 1}, "metrics": {"loss": NaN, "worst": -Infinity}}')
    assert record.load(tmp_path)[0]["metrics"] == {"loss": None, "worst": None}
    assert record.summarise(record.load(tmp_path), "settings.rate", "metrics.loss")["failed"].tolist() == [1]
