"""Runs as files: one run is one JSON file that says what was set, on what machine, and what was measured.

    record.save("runs/rates", "rate-2e-5", settings=dict(rate=2e-5, seed=0), metrics=dict(accuracy=0.81))
    record.table(record.load("runs/rates"), ["name", "settings.rate", "metrics.accuracy"])

Only Python's own library is used, so that a record can be read anywhere and for ever. Records are meant to be committed
and published: keys are in a stable order, points of a curve are one line each, and a path of your machine is refused.
"""

import enum
import html
import json
import math
import re
import statistics
from difflib import get_close_matches
from pathlib import Path

FIELDS = ("settings", "metrics", "seconds", "peak_gib", "machine", "versions")
LOCAL_PATH = re.compile(r"(?:^|[\s'\"=:(,])(?:file:/|~[/\\]|[A-Za-z]:\\|/(?:[\w.@+-]+/)+[\w.@+-]*)")
NOTHING = "—"


# ---- Saving and loading ---------------------------------------------------------------------------------


def save(
    folder, name, *, settings, metrics, curve=None, seconds=None, peak_gib=None, machine=None, versions=None, **more
):
    """Writes one run to `<folder>/<name>.json`, or `<name>-2.json` and so on: never over another one. Returns the path.

    `curve` is a list of dicts, such as `trainer.state.log_history`. Numbers of NumPy and torch become plain ones, NaN
    and infinity become null (a diverged run is a result too), an `Interval` becomes its three numbers. `ValueError` for
    what JSON cannot hold, and for a text that looks like a path of this machine.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> first = save(folder, "small", settings={"rate": 2e-5}, metrics={"accuracy": 0.81})
    >>> save(folder, "small", settings={"rate": 5e-5}, metrics={"accuracy": 0.84}).name
    'small-2.json'

    Taught in notebooks/00_start_here.ipynb, "One small run".
    """
    if not re.fullmatch(r"\w[\w.+-]*", name) or name.endswith(".json"):
        raise ValueError(
            f'name "{name}": use letters, digits and . _ + - only, without .json, such as "lora-r8-seed0".'
        )
    fields = dict(zip(FIELDS, (settings, metrics, seconds, peak_gib, machine, versions), strict=True))
    fields = fields | dict(sorted(more.items())) | {"curve": curve}
    for key in ("settings", "metrics"):
        if not isinstance(fields[key], dict):
            raise ValueError(f"{key} is {_type(fields[key])}; pass a dict of names and values.")
    lines = [f'  "{key}": {_text(_jsonable(value, key))}' for key, value in fields.items() if value is not None]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        try:
            with path.open(
                "x", encoding="utf-8", newline="\n"
            ) as file:  # "x" fails if the file exists, also for two at once
                file.write(text)
            return path
        except FileExistsError:
            number += 1


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
    files = sorted(
        path.glob("*.json"), key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", file.stem)]
    )
    if not files:
        raise FileNotFoundError(f"{path} holds no records (*.json). Run the cell that saves them, with RERUN = True.")
    return [_read(file) for file in files]


def _read(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no record {path}. Run the cell that saves it first.") from None
    except ValueError as error:  # JSON and UTF-8 errors are both ValueErrors
        raise ValueError(f"{path} is not valid JSON ({error}). Restore it, or delete it and run again.") from None
    missing = [
        key for key in ("settings", "metrics") if not isinstance(found, dict) or not isinstance(found.get(key), dict)
    ]
    if missing:
        raise ValueError(f"{path} is no record: it has no {' and no '.join(missing)}. Move it out of this folder.")
    return {"name": path.stem} | found


def _jsonable(value, where):
    """The value as JSON has it; errors name the place, such as settings.lora.r."""
    if isinstance(value, enum.Enum):
        value = value.value
    if hasattr(value, "tolist"):  # a number or an array of NumPy or torch
        value = value.tolist()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        if LOCAL_PATH.search(value):
            raise ValueError(
                f'{where} names a path of this machine: "{value}". Pass the last part only: Path(...).name.'
            )
        return value
    if hasattr(value, "_asdict"):  # a named tuple, such as metrics.Interval
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _jsonable(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return [_jsonable(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(f"{where} is {_type(value)}, which JSON cannot hold. Pass numbers, text, lists or dicts.")


def _text(value):
    """JSON, indented inside a record; a list of dicts has one line for each."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value) + "\n  ]"
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).replace("\n", "\n  ")


def _type(value):
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


# ---- Tables ---------------------------------------------------------------------------------------------


class Table(list):
    """A list of dicts that prints as a Markdown table, and as HTML in a notebook; numbers are on the right.

    `formats` gives a column its format: {"accuracy": ".1%"}. A dict of value, low and high prints as an interval.

    >>> print(Table([{"model": "tiny", "accuracy": 0.8125}, {"model": "base", "accuracy": 0.9}]))
    | model | accuracy |
    |:------|---------:|
    | tiny  |    0.812 |
    | base  |    0.900 |
    """

    def __init__(self, rows=(), formats=None):
        super().__init__(rows)
        self.formats = formats or {}

    def _columns(self):
        """For each column its heading, whether it is numbers, and its cells as text."""
        for heading in dict.fromkeys(heading for row in self for heading in row):
            values = [row.get(heading) for row in self]
            spec = self.formats.get(heading) or _format([number for value in values for number in _numbers(value)])
            numeric = all(value is None or _numbers(value) for value in values)
            yield heading, numeric, [_cell(value, spec) for value in values]

    def __str__(self):
        if not self:
            return "(no rows)"
        columns = []
        for heading, numeric, cells in self._columns():
            cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in (heading, *cells)]
            width = max(3, *map(len, cells))
            line = "-" * (width + 1) + ":" if numeric else ":" + "-" * (width + 1)
            cells = [f" {cell.rjust(width) if numeric else cell.ljust(width)} " for cell in cells]
            columns.append([cells[0], line, *cells[1:]])
        return "\n".join("|" + "|".join(line) + "|" for line in zip(*columns, strict=True))

    __repr__ = __str__

    def _repr_html_(self):
        if not self:
            return "<p>(no rows)</p>"
        columns = []
        for heading, numeric, cells in self._columns():
            style = f' style="text-align: {"right" if numeric else "left"}"'
            columns.append(
                [f"<th{style}>{html.escape(heading)}</th>", *(f"<td{style}>{html.escape(c)}</td>" for c in cells)]
            )
        head, *body = ["<tr>" + "".join(line) + "</tr>" for line in zip(*columns, strict=True)]
        return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


def show(rows, formats=None):
    """A list of dicts as a table.

    >>> show([{"guess": 0.5, "measured": 0.81}])
    | guess | measured |
    |------:|---------:|
    |   0.5 |     0.81 |

    Taught in notebooks/00_start_here.ipynb, "One small run".
    """
    return Table(rows, formats)


def table(records, columns):
    """Chosen columns of some runs, one row each.

    `columns` are dotted names; as a dict they get headings, or a heading and a format. What a run lacks is a dash, what
    no run has a `ValueError`.

    >>> runs = [{"name": "a", "settings": {"rate": 2e-5}, "metrics": {"accuracy": 0.8125}}]
    >>> table(runs, {"name": "run", "settings.rate": "rate", "metrics.accuracy": ("accuracy", ".1%")})
    | run |  rate | accuracy |
    |:----|------:|---------:|
    | a   | 2e-05 |    81.2% |

    Taught in notebooks/00_start_here.ipynb, "One small run".
    """
    columns = columns if isinstance(columns, dict) else _headings(columns)
    columns = {name: (heading, None) if isinstance(heading, str) else heading for name, heading in columns.items()}
    flat = _flat(records, columns)
    rows = [{heading: run.get(name) for name, (heading, _) in columns.items()} for run in flat]
    return Table(rows, {heading: spec for heading, spec in columns.values() if spec})


def differences(records, metrics=()):
    """What differs in the settings of some runs, their metrics, and the change of each metric from the run before.

    `metrics` are dotted names.

    >>> runs = [{"name": "a", "settings": {"rate": 2e-5, "seed": 0}, "metrics": {"accuracy": 0.81}},
    ...         {"name": "b", "settings": {"rate": 5e-5, "seed": 0}, "metrics": {"accuracy": 0.84}}]
    >>> differences(runs, ["metrics.accuracy"])
    | name |  rate | accuracy | change |
    |:-----|------:|---------:|-------:|
    | a    | 2e-05 |     0.81 |      — |
    | b    | 5e-05 |     0.84 | +0.030 |

    Taught in notebooks/01_classification.ipynb, "Round 4: what did pre-training buy?".
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    flat = _flat(records, metrics)
    names = dict.fromkeys(name for run in flat for name in run if name.startswith("settings."))
    names = [name for name in names if not any(isinstance(run.get(name), dict) for run in flat)]
    differ = [name for name in names if len({repr(run.get(name)) for run in flat}) > 1]
    headings, rows = _headings(["name", *differ, *metrics]), []
    changes = {name: "change" if len(metrics) == 1 else f"change of {headings[name]}" for name in metrics}
    for i, run in enumerate(flat):
        row = {headings[name]: run.get(name) for name in ("name", *differ)}
        for name in metrics:
            now, before = (_numbers(r.get(name))[:1] for r in (run, flat[i - 1]))
            row |= {headings[name]: run.get(name), changes[name]: now[0] - before[0] if i and now and before else None}
        rows.append(row)
    return Table(rows, dict.fromkeys(changes.values(), "+.3f"))


def summarise(records, by, metric):
    """Mean and spread of a metric over the runs that share the settings in `by`, such as runs that differ in the seed.

    `sd` is the standard deviation of the runs (n - 1), a dash for one run. Runs whose metric is null or missing are
    left out, and counted as `failed`.

    >>> runs = [{"settings": {"rate": 2e-5, "seed": s}, "metrics": {"accuracy": 0.8 + s / 100}} for s in range(3)]
    >>> summarise(runs, by=["settings.rate"], metric="metrics.accuracy")
    |  rate |   n | mean |   sd | lowest | highest |
    |------:|----:|-----:|-----:|-------:|--------:|
    | 2e-05 |   3 | 0.81 | 0.01 |   0.80 |    0.82 |

    Taught in notebooks/01_classification.ipynb, "Round 4: what did pre-training buy?".
    """
    by = [by] if isinstance(by, str) else list(by)
    groups = {}
    for run in _flat(records, [*by, metric]):
        key = tuple(repr(run.get(name)) for name in by)
        groups.setdefault(key, ({heading: run.get(name) for name, heading in _headings(by).items()}, []))[1].append(
            run.get(metric)
        )
    rows = []
    for row, found in groups.values():
        values = [_numbers(value)[0] for value in found if _numbers(value)]
        sd = statistics.stdev(values) if len(values) > 1 else None
        mean, low, high = (statistics.fmean(values), min(values), max(values)) if values else (None, None, None)
        rows.append(row | {"n": len(values), "mean": mean, "sd": sd, "lowest": low, "highest": high})
        rows[-1] |= {"failed": len(found) - len(values)}
    if not any(row["failed"] for row in rows):
        rows = [{key: value for key, value in row.items() if key != "failed"} for row in rows]
    spread = ("mean", "sd", "lowest", "highest")
    spec = _format([row[key] for row in rows for key in spread if row[key]])
    return Table(rows, dict.fromkeys(spread, spec))


def _flat(records, wanted):
    """Each run as {dotted name: value}; an error for a wanted name that none of them has."""
    records = [records] if isinstance(records, dict) else list(records)
    flat = [dict(_walk(run)) for run in records]
    known = dict.fromkeys(name for run in flat for name in run)
    for name in wanted if records else ():
        if name not in known:
            close = get_close_matches(name, known, 1) or [full for full in known if full.endswith(f".{name}")]
            hint = f" (closest: {close[0]})" if close else ""
            raise ValueError(f'no run has "{name}"{hint}. Columns are dotted names: {", ".join(list(known)[:12])} ...')
    return flat


def _walk(value, name=""):
    if name:
        yield name, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{name}.{key}" if name else str(key))


def _headings(names):
    """Dotted names without their first part, unless two would be the same."""
    short = {name: name.partition(".")[2] or name for name in names}
    return {name: heading if list(short.values()).count(heading) == 1 else name for name, heading in short.items()}


def _numbers(value):
    """The numbers of a cell: one, three for an interval, none for anything else."""
    if isinstance(value, dict) and list(value) and set(value) == {"value", "low", "high"}:
        return [value["value"], value["low"], value["high"]] if value["value"] is not None else []
    if hasattr(value, "_asdict"):
        return _numbers(value._asdict())
    if hasattr(value, "tolist"):
        value = value.tolist()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [value] if is_number and math.isfinite(value) else []


def _format(numbers):
    """One format for a column: as many decimals as its numbers have, three at most; else three digits."""
    if any(0 < abs(number) < 1e-3 for number in numbers):
        return ".3g"
    decimals = next((d for d in range(3) if all(abs(round(number, d) - number) < 1e-9 for number in numbers)), 3)
    if decimals == 0 and any(isinstance(number, float) and number < 100 for number in numbers):
        decimals = 1  # 1.0 epochs, not 1
    return f",.{decimals}f" if any(abs(number) >= 10_000 for number in numbers) else f".{decimals}f"


def _cell(value, spec):
    numbers = [format(number, spec) for number in _numbers(value)]
    if len(numbers) == 3:
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
    if numbers:
        return numbers[0]
    return NOTHING if value is None else ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
