"""Runs as files: one run is one JSON file that says what was set, on what machine, and what was measured.

    record.save("runs/rates", "rate-2e-5", settings=dict(rate=2e-5, seed=0), metrics=dict(accuracy=0.81))
    record.table(record.load("runs/rates"), ["name", "settings.rate", "metrics.accuracy"])

Records are plain JSON, meant to be committed and published: keys are in a stable order, each point of a curve is one
line, and the folders of your machine stay out. Tables are pandas DataFrames: sort, filter and plot them as any other.
"""

import contextlib
import enum
import itertools
import json
import math
import numbers
import re
import statistics
from difflib import get_close_matches
from pathlib import Path, PurePath

import pandas as pd

LOCAL_PATH = re.compile(r"(?:^|[\s'\"=:(,])(?:file:/|~[/\\]|[A-Za-z]:\\|/(?:[\w.@+-]+/)+[\w.@+-]*)")
IN_MARKDOWN = str.maketrans({"|": "\\|", "\n": " "})


# ---- Saving and loading ---------------------------------------------------------------------------------


def save(folder, name, *, settings, metrics, curve=None, **more):
    """Writes one run to `<folder>/<name>.json`, or `<name>-2.json` and so on: never over another one. Returns the path.

    `curve` is a list of dicts, such as `trainer.state.log_history`; `more` is what else there is to say, such as
    `seconds`, `peak_gib`, `machine=env.machine()`, `versions=env.versions()`; what is None is left out. Numbers of
    NumPy and torch become plain ones, NaN and infinity become null (a diverged run is a result too), an `Interval`
    becomes its three numbers. Of a path of this machine only the last part is kept. `ValueError` for what JSON cannot
    hold, and for a path within a text.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> first = save(folder, "small", settings={"rate": 2e-5}, metrics={"accuracy": 0.81})
    >>> save(folder, "small", settings={"rate": 5e-5}, metrics={"accuracy": 0.84}).name
    'small-2.json'

    Taught in notebooks/00_start_here.ipynb, "Keep the run".
    """
    if not re.fullmatch(r"\w[\w.+-]*", name) or name.endswith(".json"):
        raise ValueError(f'name "{name}": use letters, digits and . _ + - only, without .json: "lora-r8-seed0".')
    fields = {"settings": settings, "metrics": metrics, **dict(sorted(more.items())), "curve": curve}
    for key in ("settings", "metrics"):
        if not isinstance(fields[key], dict):
            raise ValueError(f"{key} is {type(fields[key]).__name__}; pass a dict of names and values.")
    lines = [f'  "{key}": {_text(_jsonable(value, key))}' for key, value in fields.items() if value is not None]
    text = ("{\n" + ",\n".join(lines) + "\n}\n").encode(errors="backslashreplace")  # before there is a file
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        # "x" fails if the file exists, also if another process has just made it
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(text)
            return path


def load(path):
    """Reads one run (a dict), or all runs of a folder (a list, `run-2` before `run-10`); each has its file's "name".

    `FileNotFoundError` when there is nothing to read, `ValueError` for a file that is no record.

    >>> import tempfile
    >>> path = save(tempfile.mkdtemp(), "small", settings={"rate": 2e-5}, metrics={"accuracy": 0.81})
    >>> load(path)
    {'name': 'small', 'settings': {'rate': 2e-05}, 'metrics': {'accuracy': 0.81}}
    >>> len(load(path.parent))
    1
    """
    path = Path(path)
    if not path.is_dir():
        return _read(path)
    files = sorted(path.glob("*.json"), key=_natural)
    if not files:
        raise FileNotFoundError(f"{path} holds no records (*.json). Save some with record.save, or set RERUN = True.")
    return [_read(file) for file in files]


def _natural(path):
    """A sort key that puts run-2 before run-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def _read(path):
    try:
        run = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda constant: None)  # NaN is no JSON
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no record {path}. Run the cell that saves it first.") from None
    except ValueError as error:  # JSON and UTF-8 errors are both ValueErrors
        raise ValueError(f"{path} is not valid JSON ({error}). Restore it, or delete it and run again.") from None
    fields = run if isinstance(run, dict) else {}
    missing = [key for key in ("settings", "metrics") if not isinstance(fields.get(key), dict)]
    if missing:
        raise ValueError(f"{path} is no record: it has no {' and no '.join(missing)}. Move it out of this folder.")
    return {"name": path.stem} | run


def _jsonable(value, name):
    """The value as JSON has it; errors say which value it is, such as settings.lora.r."""
    if isinstance(value, enum.Enum):
        value = value.value
    if hasattr(value, "tolist"):  # a number or an array of NumPy or torch
        value = value.tolist()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, PurePath)):
        return _without_folders(str(value), name)
    if hasattr(value, "_asdict"):  # a named tuple, such as metrics.Interval
        value = value._asdict()
    if isinstance(value, dict):
        plain = {str(key): _jsonable(item, f"{name}.{key}") for key, item in value.items()}
        if len(plain) < len(value):
            raise ValueError(f'{name} has two keys that are the same as text, such as 1 and "1". Rename one.')
        return plain
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [_jsonable(item, f"{name}[{i}]") for i, item in enumerate(value)]
    raise ValueError(f"{name} is {type(value).__name__}, which JSON cannot hold. Pass numbers, text, lists or dicts.")


def _without_folders(text, name):
    """A text as it is; of a path of this machine the last part, which is what a reader elsewhere can use."""
    if not LOCAL_PATH.search(text):
        return text
    last = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    if LOCAL_PATH.match(text) and not text.startswith((" ", "'", '"')) and last and len(LOCAL_PATH.findall(text)) == 1:
        return last
    raise ValueError(f'{name} names a path of this machine: "{text}". Pass the last part only: Path(...).name.')


def _text(value):
    """JSON, indented inside a record; a list of dicts has one line for each."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value) + "\n  ]"
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).replace("\n", "\n  ")


# ---- Tables ---------------------------------------------------------------------------------------------


class Table(pd.DataFrame):
    """A DataFrame that shows whole: as Markdown in `print`, as HTML in a notebook, with the numbers of a column short.

    The values stay exact, and what pandas makes of a table looks as pandas has it. `attrs["formats"]` gives columns
    their formats: {"accuracy": ".1%"}.

    >>> print(Table([{"model": "tiny", "accuracy": 0.8125}, {"model": "base", "accuracy": 0.9}]))
    | model   |   accuracy |
    |:--------|-----------:|
    | tiny    |      0.812 |
    | base    |      0.900 |
    """

    def _rendered(self, style, escapes):
        formats, texts, sides = self.attrs.get("formats", {}), {}, []
        for name in self.columns:
            values = self[name].tolist()
            spec = formats.get(name) or _format([value for value in values if _is_number(value)])
            texts[name] = [_cell(value, spec).translate(escapes) for value in values]
            sides.append("right" if all(value is None or _is_number(value) for value in values) else "left")
        options = dict(index=False, disable_numparse=True, tablefmt=style)
        return pd.DataFrame(texts).to_markdown(**options, colalign=sides or None)

    def __repr__(self):
        return self._rendered("pipe", IN_MARKDOWN)

    def _repr_html_(self):
        table = self._rendered("html", {})
        for tag in ("td", "th"):  # a notebook puts all cells to the right that do not say where
            table = table.replace(f"<{tag}>", f'<{tag} style="text-align: left;">')
        return table


def show(rows, formats=None):
    """A list of dicts as a table, with the formats of its columns; a gap is None, and shows as a dash.

    >>> show([{"guess": 0.5, "measured": 0.81}, {"measured": 0.84}], {"measured": ".1%"})
    |   guess |   measured |
    |--------:|-----------:|
    |     0.5 |      81.0% |
    |       — |      84.0% |

    Taught in notebooks/00_start_here.ipynb, "Before and after".
    """
    rows, columns = list(rows), {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        values = [value.tolist() if hasattr(value, "tolist") else value for value in values]  # of NumPy and torch
        # Among numbers pandas would make None nan, and 1 beside it 1.0; as objects they stay what they are.
        columns[name] = pd.Series(values, dtype=object if None in values else None)
    table = Table(columns)
    table.attrs["formats"] = formats or {}
    return table


def table(records, columns):
    """Chosen columns of some runs, one row each.

    `columns` are dotted names; as a dict they get headings, or a heading and a format. Of an interval the column is its
    value, and `.low` and `.high` are its ends. What a run lacks is a gap, what no run has a `ValueError`.

    >>> runs = [{"name": "a", "settings": {"rate": 2e-5}, "metrics": {"accuracy": 0.8125}}]
    >>> table(runs, {"name": "run", "settings.rate": "rate", "metrics.accuracy": ("accuracy", ".1%")})
    | run   |   rate |   accuracy |
    |:------|-------:|-----------:|
    | a     |  2e-05 |      81.2% |

    Taught in notebooks/00_start_here.ipynb, "Keep the run".
    """
    columns = columns if isinstance(columns, dict) else _headings(columns)
    columns = {name: (heading, None) if isinstance(heading, str) else heading for name, heading in columns.items()}
    rows = [{heading: run.get(name) for name, (heading, _) in columns.items()} for run in _flat(records, columns)]
    return show(rows, dict(columns.values()))


def summarise(records, by, metric):
    """Mean and spread of a metric over the runs that share the settings in `by`, such as runs that differ in the seed.

    `sd` is the standard deviation of the runs (n - 1), a gap for one run. Runs whose metric is null or missing are left
    out, and counted as `failed`.

    >>> runs = [{"settings": {"rate": 2e-5, "seed": s}, "metrics": {"accuracy": 0.8 + s / 100}} for s in range(3)]
    >>> summarise(runs, by=["settings.rate"], metric="metrics.accuracy")
    |   rate |   n |   mean |   sd |   lowest |   highest |
    |-------:|----:|-------:|-----:|---------:|----------:|
    |  2e-05 |   3 |   0.81 | 0.01 |      0.8 |      0.82 |

    Taught in notebooks/04_lora.ipynb, "Round 3: is it as good?".
    """
    by = [by] if isinstance(by, str) else list(by)
    groups = {}
    for run in _flat(records, [*by, metric]):
        settings = {heading: run.get(name) for name, heading in _headings(by).items()}
        groups.setdefault(repr(settings), (settings, []))[1].append(run.get(metric))
    failed, rows = any(None in results for _, results in groups.values()), []
    for settings, results in groups.values():
        values = [value for value in results if value is not None]
        row = {"n": len(values), "mean": statistics.fmean(values) if values else None}
        row["sd"] = statistics.stdev(values) if len(values) > 1 else None
        row |= {"lowest": min(values, default=None), "highest": max(values, default=None)}
        rows.append({**settings, **row} | ({"failed": len(results) - len(values)} if failed else {}))
    return show(rows)


def _flat(records, columns):
    """Each run as {dotted name: value}; an error for a column that none of them has."""
    records = [records] if isinstance(records, dict) else list(records)
    flat = [dict(_walk(run)) for run in records]
    known = dict.fromkeys(name for run in flat for name in run)
    for name in columns if records else ():
        if name not in known:
            close = get_close_matches(name, known, 1) or [full for full in known if full.endswith(f".{name}")]
            hint = f" (closest: {close[0]})" if close else ""
            raise ValueError(f'no run has "{name}"{hint}. Columns are dotted names: {", ".join(list(known)[:12])} ...')
    return flat


def _walk(value, name=""):
    if name:
        yield name, value["value"] if isinstance(value, dict) and set(value) == {"value", "low", "high"} else value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{name}.{key}" if name else str(key))


def _headings(names):
    """Dotted names without their first part, unless two would be the same."""
    short = {name: name.partition(".")[2] or name for name in names}
    return {name: heading if list(short.values()).count(heading) == 1 else name for name, heading in short.items()}


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _format(values):
    """One format for a column: as many decimals as its numbers have, three at most; else three digits."""
    if any(0 < abs(value) < 1e-3 for value in values):
        return ".3g"
    values = [value for value in values if math.isfinite(value)]
    decimals = next((d for d in range(3) if all(abs(round(value, d) - value) < 1e-9 for value in values)), 3)
    if decimals == 0 and any(isinstance(value, float) and value < 100 for value in values):
        decimals = 1  # 1.0 epochs, not 1
    return f",.{decimals}f" if any(abs(value) >= 10_000 for value in values) else f".{decimals}f"


def _cell(value, spec):
    if _is_number(value):
        return format(value, spec)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_asdict"):  # a named tuple prints itself
        return ", ".join(map(str, value))
    return "—" if value is None else str(value)
