"""Your own data: read it, check it, split it, look at it.

The order of use is the order of this file; `helpers.text` goes on from here:

    rows = data.check(data.read("reviews.csv"))         # one error lists everything that is wrong
    splits = data.split(rows)                           # stratified, no text in two splits
    print(data.overlaps(splits), data.class_balance(splits))
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, **data.label_maps(rows))
    examples = text.tokenize(splits, tokenizer)

Everything stays on disk as memory-mapped Arrow tables (the `datasets` library) and is read a piece at a
time, so a file larger than memory works, but for .json, which is parsed whole. Your files are only ever
read: what has to be written goes to a folder of this process under the `datasets` cache, which is removed
when Python ends.

Rows count as a person counts them: the first row of data is row 1, the header is not a row, empty
lines are skipped. Whatever is wrong with the data is a `DataError`, and nothing else.

A new file format is a function from a path to a `Dataset` in `FORMATS`; a new shape of a JSON file is one in
`SHAPES`; a new pair of columns is a line in `PAIRS`; a new way to write a message is a case in `_message`.
"""

import ast
import collections
import contextlib
import csv
import difflib
import functools
import itertools
import json
import math
import re
import string
import tempfile
import unicodedata
import uuid
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, Json, List, Value
from datasets.utils.json import ujson_loads

UNSEEN = f"{string.whitespace}\ufeff\u200b\u200e\u200f\u00a0"  # what may stand around a name or a line
BATCH = 10_000  # rows looked at together: enough to be fast, few enough that long documents fit in memory
SHOWN, LINES = 5, 20  # rows and problems named in an error
MOST_CLASSES = 10_000  # a column with more different values than this is no label
EACH = 'If each file is one text, write them all into one .jsonl file, a line each: {"text": ..., "label": ...}.'
LARGEST_CELL = 8 << 20  # bytes of one CSV cell; a longer one is a quotation mark that is never closed
MESSAGES = Features({"messages": List({"role": Value("string"), "content": Value("string")})})


class DataError(ValueError):
    """Something is wrong with the data: the message says what, in which rows, and what to do."""


class Problems:
    """What is wrong with the data, collected so that one error can say it all.

    >>> problems = Problems()
    >>> problems.add("reviews.csv", "the text is empty. Fill it in.", 3)
    >>> problems.add("reviews.csv", "the text is empty. Fill it in.", 8)
    >>> problems.raise_all()
    Traceback (most recent call last):
    helpers.data.DataError: reviews.csv, rows 3, 8: the text is empty. Fill it in.
    """

    def __init__(self):
        self.counts, self.first_rows = collections.Counter(), {}

    def add(self, where, message, *rows):
        """Notes one problem of these rows; the same message for several rows becomes one line."""
        first = self.first_rows.setdefault((where, message), [])
        first += map(int, rows[: SHOWN - len(first)])
        self.counts[where, message] += len(rows)

    def raise_all(self, name="the data"):
        """Raises one DataError with all the problems, or returns when there are none."""
        lines = []
        for (where, message), rows in self.first_rows.items():
            more = self.counts[where, message] - len(rows)
            numbers = ", ".join(map(str, rows)) + (f" and {more} more" if more else "")
            place = f", row{'s' if len(rows) > 1 else ''} {numbers}" if rows else ""
            lines.append(f"{where}{place}: {message}")
        heading = [f"{name}: {len(lines)} problems"] if len(lines) > 1 else []
        more = [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
        if lines:
            raise DataError("\n  ".join([*heading, *lines[:LINES], *more]))


# ---- Reading ---------------------------------------------------------------------------------------


def read(source, *, split=None):
    """Reads a file, a saved folder, a Hub id or a Dataset as one memory-mapped `Dataset`.

    `source` is the path of a file, a folder written by `save_to_disk`, a `Dataset`, or "owner/name" on the Hugging
    Face Hub. `split` picks one split where there are several. The name of a file is kept as `file_name`, for errors.

    - .csv and .tsv, with a header; Excel's `sep=` line, `;`, tab or `|`, UTF-16 and `\\"` inside a cell are read too. A
      CSV file has no types, so all its columns come as text ("007" stays "007", and the word "None" stays a word), but
      for a column whose cells are all lists such as ['B-PER', 'O']. It is an error when the first line looks like data:
      one of its cells is a number, or is found again in its own column within the next 1,000 rows; and when a row
      repeats the header, wherever it is.
    - .json, .jsonl and .ndjson: a list of objects, one object per line, SQuAD's own nesting (a row for each question),
      one list in an object, or what pandas writes. NaN is a missing value. A column of objects that one Arrow type
      would change (fields that only some rows have come back as None) stays JSON: it is as it was in the file.
    - .conll, .iob, .iob2, .bio, .txt: one word per line, its tag last, blank lines between sentences. They become
      `tokens` and `tags`; columns in between become `column 2`, `column 3`, ...
    - .parquet.

    Raises `DataError` for anything that cannot be read.

    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "tiny.csv").write_text("text,label\\nGood value,positive\\n")
    >>> read(folder / "tiny.csv")[0]
    {'text': 'Good value', 'label': 'positive'}
    >>> read(folder / "tiny.cvs")
    Traceback (most recent call last):
    helpers.data.DataError: tiny.cvs: there is no such file (closest in its folder: tiny.csv). Correct the path, \
or the Hub id.

    Taught in notebooks/01_classification.ipynb, "Where this leads".
    """
    if isinstance(source, (Dataset, DatasetDict)):
        return _one_split(source, "the data", split)
    if not isinstance(source, (str, Path)):
        cure = "Make a table one with Dataset.from_pandas or Dataset.from_list."
        raise DataError(f"expected a path, a Hub id or a Dataset, got {type(source).__name__}. {cure}")
    path = Path(source).expanduser()
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)) and path.suffix.lower() not in FORMATS
    if path.is_dir() or (is_hub_id and not path.exists() and not path.parent.is_dir()):
        return _one_split(_load(source, path), path.name, split)
    _check_file(path)
    try:
        dataset = FORMATS[path.suffix.lower()](path)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    if dataset.num_rows == 0:
        raise DataError(f"{path.name}: holds no rows. Add some, or check that it was saved whole.")
    dataset.file_name = path.name
    return _one_split(dataset, path.name, split)


def _load(source, path):
    """A folder that `save_to_disk` wrote, or a data set on the Hub."""
    try:
        with _no_progress_bars():
            return datasets.load_from_disk(str(path)) if path.is_dir() else datasets.load_dataset(str(source))
    except Exception as error:  # the library raises a dozen unrelated types here
        cure = "Download a file and pass its path; or check the name, the network, HF_HUB_OFFLINE and `hf auth login`."
        if path.is_dir():
            files = _names(sorted(file.name for file in path.glob("*.*") if file.suffix.lower() in FORMATS))
            cure = f"Pass {f'one of its files ({files})' if files else 'a file'}, or what save_to_disk wrote. {EACH}"
        what = f"could not be loaded ({type(error).__name__}: {_first_line(error)})"
        raise DataError(f"{source}: {what}. {cure}") from error


def _one_split(dataset, name, split):
    if isinstance(dataset, Dataset) and split is None:
        return dataset
    if isinstance(dataset, Dataset):
        raise DataError(f"{name}: is one split already, so split={split!r} means nothing. Leave it out.")
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        what = f"has no split {split!r}" if split is not None else "has several splits"
        raise DataError(f"{name}: {what}. Pass split= one of {_names(dataset)}.")
    return dataset[split]


def _check_file(path):
    """Raises for a file that is missing, empty or of an unknown format."""
    if not path.exists():
        folder = "" if path.parent.is_dir() else f", and no folder {path.parent}"
        closest = _closest(path.name, [file.name for file in path.parent.glob("*")], "closest in its folder")
        raise DataError(f"{path.name}: there is no such file{folder}{closest}. Correct the path, or the Hub id.")
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path.name}: unknown format {path.suffix!r}. Convert or unpack it to {', '.join(FORMATS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path.name}: the file is empty. Save it again from where it came.")


def _open(path):
    """The file as text: UTF-8, or the UTF-16 that Excel and Windows write."""
    with path.open("rb") as file:
        start = file.read(4)
    utf16 = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-16-le" if start[1::2] == b"\0\0" else None
    return path.open(encoding=utf16 or "utf-8-sig", newline="")


BINARY = {b"PK": "a zip or Excel", b"\x1f\x8b": "a gzip", b"\x28\xb5\x2f\xfd": "a Zstandard", b"PAR1": "a Parquet"}


def _not_utf8(path):
    """The error for a file that is not what `_open` takes it for: where the first wrong byte is, and how to convert."""
    cure = f"write a converted copy: `Path('utf8{path.suffix}').write_text(Path({str(path)!r}).read_text("
    with path.open("rb") as file:
        for kind in (kind for start, kind in BINARY.items() if file.peek(4).startswith(start)):
            return DataError(f"{path.name}: is {kind} file. Unpack it, save it as CSV, or give it its own ending.")
        for number, line in enumerate(file, 1):
            if b"\0" in line:
                break
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                guess, way = "If the file is cp1252 (Latin-1, of a Western Windows)", "'cp1252'"
                if re.search(rb"[\x81\x8d\x8f\x90\x9d]", line + file.read()):  # which cp1252 does not have
                    guess, way = "Nor is it cp1252. To go on with \ufffd for each wrong byte", "'utf-8', 'replace'"
                return DataError(
                    f"{path.name}, line {number}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is "
                    f"not UTF-8. {guess}, {cure}{way}), 'utf-8')`, and read that."
                )
    return DataError(f"{path.name}: looks like UTF-16 and is not. Save it again as UTF-8.")


# Tables as text

PLAIN, ESCAPED, UNQUOTED = "plain", 'quotation marks written as \\"', "no quotation marks"
LISTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+"""
A_LIST = re.compile(rf"\s*\[\s*(?:(?:{LISTED})\s*(?:,\s*(?:{LISTED})\s*)*)?\]\s*")


def _read_table(path):
    """A CSV or TSV file; or columns of words and tags, when the first two lines end in a tag."""
    with _open(path) as file:
        first = list(itertools.islice((line for line in file if line.strip() and line[0] != "#"), 2))
    tagged = [re.match("-DOCSTART-", line) or re.search(rf"[ \t](?:{TAG.pattern})\s*$", line) for line in first]
    if tagged and all(tagged):
        return _read_conll(path)
    dialect, refused = _dialect(path), None
    for way in (PLAIN, ESCAPED, *([UNQUOTED] if dialect[1] == "\t" else [])):
        try:
            return _written(path.name, lambda way=way: _csv_pieces(path, dialect, way))
        except _Unreadable as error:
            refused = refused or error
        except DataError:  # of another way than the file's own there is nothing to say
            if not refused:
                raise
    raise refused


class _Unreadable(DataError):
    """The `csv` module cannot read a table in one of the ways to write it."""


def _dialect(path):
    """Whether there is a line `sep=` before the header, the separator, and whether a space follows it."""
    with _open(path) as file:
        told = re.match(r'"?sep=([^"\r\n])', file.readline(), re.IGNORECASE)
        file.seek(0)
        first = next((line for line in itertools.islice(file, 1 if told else 0, None) if line.strip()), "")
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    separator = told[1] if told else usual if usual in first else max(usual + ",;\t|", key=first.count)
    for candidate in () if told else dict.fromkeys(usual + ",;\t|"):  # which gives each row as many cells as the header
        with contextlib.suppress(_Unreadable):
            counts = {len(row) for row in itertools.islice(_csv_rows(path, (False, candidate, False), PLAIN), 20)}
            if len(counts) == 1 and counts != {1}:
                separator = candidate
                break
    return bool(told), separator, re.search(f"{re.escape(separator)} +[^ ]", first) is not None


def _csv_rows(path, dialect, way):
    """Yields the header and the rows that are not empty, as lists of cells."""
    csv.field_size_limit(LARGEST_CELL)
    told, separator, spaces = dialect
    quoting = csv.QUOTE_NONE if way == UNQUOTED else csv.QUOTE_MINIMAL
    with _open(path) as file:
        lines = itertools.islice(file, 1, None) if told else file
        if way == ESCAPED:
            lines = (re.sub(r'\\(["\\])', lambda found: {'"': '""'}.get(found[1], found[1]), line) for line in lines)
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=spaces, quoting=quoting, strict=True)
        number = 0  # the header is not a row
        try:
            for row in filter(None, rows):
                yield row
                number += 1
        except csv.Error as error:
            raise _Unreadable(
                f"{path.name}, row {number}: cannot be read as CSV ({error}). Close each quotation mark, and write one "
                'inside a quoted cell twice: "".'
            ) from None


def _csv_pieces(path, dialect, way):
    """Yields the columns of each piece of a CSV or TSV file."""
    rows, problems, start, listed = _csv_rows(path, dialect, way), Problems(), 1, None
    header, again = _header(next(rows, []))
    while piece := list(itertools.islice(rows, BATCH)):
        if start == 1:
            _check_header(path.name, header, piece[:1000], dialect[1])
        repeats = [i for i, row in enumerate(piece) if row[0].strip() in again and _same_names(row, header)]
        for i in repeats:
            cure = "Two files were joined, or there is no header: delete that line, or add a first line"
            problems.add(path.name, f"repeats the header ({_names(header)}). {cure}.", start + i)
        if set(map(len, piece)) != {len(header)}:
            _check_ragged(problems, path.name, piece, start, header, dialect[1])
        elif not problems.first_rows:
            columns = dict(zip(header, zip(*piece, strict=True), strict=True))
            listed = _listed(columns) if listed is None else listed
            yield columns | {name: _parsed_lists(path.name, name, columns[name], start) for name in listed}
        start += len(piece)
    problems.raise_all(path.name)


def _header(names):
    """The names of the columns, and how a second header in the middle of the file may begin."""
    # As pandas does: a column without a name is most often an index that was saved with the rest.
    header = [name.strip(UNSEEN) or f"Unnamed: {i}" for i, name in enumerate(names)]
    again = {spelled for name in header for spelled in (name, name.lower(), name.upper(), name.title())}
    return header, again | {f"\ufeff{name}" for name in header}


def _same_names(row, header):
    """Whether these cells are the names of the columns, in any order and case."""
    return sorted(cell.strip('\ufeff "').casefold() for cell in row) == sorted(map(str.casefold, header))


def _check_header(file, header, rows, separator):
    if twice := next((name for name in header if header.count(name) > 1), None):
        cure = "Rename one of the columns; if the first line is data, add one such as text,label"
        raise DataError(f"{file}: in the header {_short(twice)} is there twice. {cure}.")
    reason = next((f"{_short(name)} is a number" for name in header if _is_number(name)), None)
    for number, row in enumerate(rows, 1):
        found = [name for name, cell in zip(header, row, strict=False) if name == cell]
        if found and not reason and not _same_names(row, header):
            reason = f"{_short(found[0])} is found again in the same column in row {number}"
    if reason:
        names = separator.join(["text", "label", *(f"column {i}" for i in range(3, len(header) + 1))])
        raise DataError(
            f"{file}: the first line looks like data, not like column names: {reason}. "
            f"Add a first line such as {names!r}, each name where its column is, or rename that column."
        )


def _check_ragged(problems, file, rows, start, header, separator):
    """Notes the rows that have another number of cells than the header."""
    examples = {}
    for number, row in enumerate(rows, start):
        if len(row) != len(header):
            example = examples.setdefault(len(row), _short(separator.join(row)))
            cells = f"{len(row)} cell{'s' if len(row) > 1 else ''} where the header has {len(header)}, {_names(header)}"
            cure = f"Put quotation marks around a cell with a {separator!r} in it"
            problems.add(file, f"has {cells}: {example}. {cure}, and close each one.", number)


def _listed(columns):
    """The columns in which each cell is a list, as pandas writes one."""
    return [
        name
        for name, cells in columns.items()
        if cells[0].lstrip()[:1] == "[" and all(map(A_LIST.fullmatch, cells)) and any(cell != "[]" for cell in cells)
    ]


def _parsed_lists(file, column, cells, start):
    for number, cell in enumerate(cells, start):
        if not A_LIST.fullmatch(cell):
            what = f"column {_short(column)} holds {_short(cell)}, and the rows before it hold lists"
            raise DataError(f"{file}, row {number}: {what}. Make them one kind.")
    try:
        return [ast.literal_eval(cell.strip()) for cell in cells]
    except (ValueError, SyntaxError) as error:  # half an escape, a number with leading zeros
        raise DataError(f"{file}: column {_short(column)} holds a list that is none ({_first_line(error)}).") from None


# Words and tags in columns

TAG = re.compile(r"O|[BIESULMW]-\S+")


def _read_conll(path):
    return _written(path.name, lambda: _pieces(path.name, _conll_rows(path)))


def _conll_rows(path):
    """Yields the sentences of a file with a word per line, its columns by spaces or tabs, and blank lines between."""
    with _open(path) as file:
        lines, width, sentence = enumerate(itertools.chain(file, [""]), 1), None, []
        for number, line in lines:
            line = line.strip("\r\n ")
            cells = line.split("\t") if "\t" in line else re.split(" +", line)
            comment = cells[0][:1] == "#" and len(cells) != width and not TAG.fullmatch(cells[-1])
            if not line.strip() or cells[0] == "-DOCSTART-" or comment:
                if sentence and cells[0][:1] != "#":
                    yield _sentence(sentence)
                    sentence = []
                continue
            width = width or len(cells)
            empty = "" if all(map(str.strip, cells)) else ", one of them empty"
            if len(cells) != width or width == 1 or empty:
                raise DataError(
                    f"{path.name}, line {number}: has {len(cells)} columns{empty} ({_short(line)}), where there "
                    f"should be {max(width, 2)}: a word first, its tag last. Correct it; a blank line ends a sentence."
                )
            sentence.append(cells)


def _sentence(lines):
    """The columns of a sentence; numbers of words, which some files begin with, are left out."""
    words = [cells for cells in lines if not re.fullmatch(r"\d+[-.]\d+", cells[0])]  # of CoNLL-U, where two are in one
    numbers = [[str(i + first) for i in range(len(words))] for first in (0, 1)] if words and len(lines[0]) > 2 else []
    if [cells[0] for cells in words] in numbers:
        lines = [cells[1:] for cells in words]
    columns = [list(column) for column in zip(*lines, strict=True)]
    between = {f"column {number}": column for number, column in enumerate(columns[1:-1], 2)}
    return {"tokens": columns[0], **between, "tags": columns[-1]}


# JSON


def _read_json(path):
    return _written(path.name, lambda: _pieces(path.name, _json_rows(path)))


def _json_rows(path):
    """Yields the objects of a JSON Lines file; or of a list or another shape of one, which is held in memory whole."""
    with _open(path) as file:
        lines = ((number, text) for number, line in enumerate(file, 1) if (text := line.strip(UNSEEN)))
        beginning = list(itertools.islice(lines, 2))
        try:
            row = DECODER.decode(beginning[0][1]) if beginning else None
        except (RecursionError, ValueError):
            row = None
        is_whole = len(beginning) == 1 and (path.suffix.lower() == ".json" or _is_squad(row))
        if isinstance(row, dict) and not is_whole:
            for number, line in itertools.chain(beginning, lines):
                yield _parsed(path.name, line, number)
            return
    with _open(path) as file:
        content = file.read()
    try:
        whole = _parsed(path.name, content)
    except DataError:
        if path.suffix.lower() != ".json" and beginning and beginning[0][1][:1] != "[":
            _parsed(path.name, beginning[0][1], beginning[0][0])  # raises with the first line
        raise
    rows = whole if isinstance(whole, list) else _unfolded(path.name, whole)
    if rows is None:
        has = f" It is an object with {_names(whole)}." if isinstance(whole, dict) else ""
        hint = f"If it is one object per line, it is a .jsonl file. {EACH}"
        raise DataError(f'{path.name}: is not a list of objects ([{{"text": ...}}, ...]).{has} {hint}')
    yield from rows


def _unique(pairs):
    """An object; JSON would take the last of two values of one name and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {_short(next(n for n in names if names.count(n) > 1))} is twice in one object")
    return found


def _constant(name):
    return None if name == "NaN" else float(name)  # NaN stands for a missing value


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def _parsed(name, content, line=1):
    try:
        return DECODER.decode(content)
    except (RecursionError, ValueError) as error:
        line, column = line + getattr(error, "lineno", 1) - 1, getattr(error, "colno", 1)
        raise DataError(
            f"{name}, line {line}: broken JSON: {getattr(error, 'msg', _first_line(error))} at column {column}. "
            "Correct that line; a list of objects belongs in a .json file, one object per line in a .jsonl file."
        ) from None


def _unfolded(name, whole):
    """The rows of an object that holds them in one of the shapes of `SHAPES`, or None."""
    if not isinstance(whole, dict):
        return None
    for shape, unfold in SHAPES.items():
        try:
            rows = unfold(whole)
        except (AttributeError, KeyError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"{name}: looks like {shape} and is not: {type(error).__name__}: {error}.") from None
        if rows is not None:
            return rows
    return None


def _of_squad(whole):
    """A row for each question, as on the Hub."""
    if not _is_squad(whole):
        return None
    return [
        {"id": asked.get("id"), "title": article.get("title"), "context": part["context"]}
        | {"question": asked["question"]}
        | {"answers": {key: [a[key] for a in asked.get("answers") or []] for key in ("text", "answer_start")}}
        for article in whole["data"]
        for part in article["paragraphs"]
        for asked in part["qas"]
    ]


def _is_squad(whole):
    return isinstance(whole, dict) and _objects(whole.get("data")) and "paragraphs" in whole["data"][0]


def _of_one_list(whole):
    lists = [key for key, value in whole.items() if _objects(value) and key not in CHATS]
    return whole[lists[0]] if len(lists) == 1 and not set(CHATS) & set(whole) else None


def _of_columns(whole):
    """What pandas.to_json writes: columns, rows by their index, or a table apart from its names."""
    values = list(whole.values())
    if "columns" in whole and "data" in whole:
        return [dict(zip(whole["columns"], row, strict=True)) for row in whole["data"]]
    if values and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        by_column = {name: list(value.values()) for name, value in whole.items()}
        return values if all(name.isdecimal() for name in whole) else _of_columns(by_column)
    if values and all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        return [dict(zip(whole, row, strict=True)) for row in zip(*values, strict=True)] if values[0] else None
    return None


def _objects(value):
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


# What a JSON object may hold instead of a list of rows: for each shape a function that gives its rows, or None.
SHAPES = {
    "SQuAD's own file": _of_squad,
    "one list of rows in an object": _of_one_list,
    "a table of pandas": _of_columns,
}


def _pieces(file, rows):
    """Yields the columns of each piece of these rows."""
    numbered = enumerate(rows, 1)
    while piece := list(itertools.islice(numbered, BATCH)):
        for number, row in piece:
            if not isinstance(row, dict):
                kind = KINDS.get(type(row), "null")
                raise DataError(f'{file}, row {number}: holds {kind}, not an object such as {{"text": "..."}}.')
        names = dict.fromkeys(itertools.chain.from_iterable(row for _, row in piece))
        yield {name: [row.get(name) for _, row in piece] for name in names}


def _read_parquet(path):
    try:
        with _no_progress_bars():
            rows = Dataset.from_parquet(str(path), cache_dir=tempfile.mkdtemp(dir=_temporary_folder().name))
        rows.data.validate(full=True)  # bytes that are no UTF-8 are found here, not when a row is read
        return rows
    except (pa.ArrowException, datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(f"{path.name}: cannot be read as Parquet ({_first_line(error)}). Save it again.") from None


# For each ending, a function of the path that reads the file as a Dataset.
FORMATS = dict.fromkeys((".csv", ".tsv", ".txt"), _read_table)
FORMATS |= dict.fromkeys((".json", ".jsonl", ".ndjson"), _read_json)
FORMATS |= dict.fromkeys((".conll", ".iob", ".iob2", ".bio"), _read_conll) | {".parquet": _read_parquet}


def _written(file, pieces):
    """Writes pieces of columns as Arrow and maps them into memory.

    `pieces` gives an iterator of {column: values}. It is called twice: a column's type is known once its last row is.
    """
    path, types = _temporary_file(), _types(file, pieces())
    schema = pa.schema(list(types.items()))
    try:
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for columns in pieces():
                n_rows = len(next(iter(columns.values()), ()))
                arrays = [_array(columns.get(name, [None] * n_rows), type_) for name, type_ in types.items()]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        return Dataset.from_file(path)
    except UNFIT as error:
        if isinstance(error, (DataError, UnicodeDecodeError)):
            raise
        raise DataError(f"{file}: has a column that `datasets` cannot hold ({_first_line(error)}).") from None


def _array(values, type_):
    return _json_array(values, type_) if _is_json(type_) else pa.array(values, type_)


def _types(file, pieces):
    """The Arrow type of each column that holds all its values."""
    types, start = {}, 1
    for columns in pieces:
        for name, values in columns.items():
            before = types.get(name, pa.null())
            try:
                types[name] = _common_type(values, before)
            except UNFIT:
                raise _misfit(file, name, values, start, before) from None
        start += len(next(iter(columns.values()), ()))
    return types


UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)
KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


def _common_type(values, before):
    """The Arrow type that holds these values and those before them; raises one of `UNFIT` where there is none.

    Objects that it does not hold as they are stay JSON: Arrow gives each all the fields that any of them has.
    """
    as_json = _json_type(values)
    if _is_json(before) and _fits_json(values, before):
        _json_array(values, before)
        return before
    try:
        array = pa.array(values)
        schemas = [pa.schema([("x", type_)]) for type_ in (before, array.type)]
        common = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
        same = pa.types.is_null(before) or pa.types.is_null(array.type) or before == array.type
        if as_json is None or (same and _is_exact(array, values)):
            pa.array(values, common)
            return common
    except UNFIT:
        if as_json is None:
            raise
    if pa.types.is_null(before) or pa.types.is_nested(before):
        _json_array(values, as_json)
        return as_json
    raise TypeError(f"{before} and objects")


def _json_type(values):
    """How objects, or lists of objects, are kept as JSON; None for values that are neither."""
    found = [value for value in values if value is not None]
    if found and all(isinstance(value, dict) for value in found):
        return pa.json_()
    items = [item for value in found for item in (value if isinstance(value, list) else [0]) if item is not None]
    return pa.list_(pa.json_()) if items and all(isinstance(item, dict) for item in items) else None


def _is_json(type_):
    return isinstance(type_.value_type if pa.types.is_list(type_) else type_, pa.JsonType)


def _fits_json(values, type_):
    empty = (None,) if type_ == pa.json_() else (None, [])
    return _json_type(values) == type_ or all(value in empty for value in values)


def _json_array(values, type_):
    def text(value):
        written = None if value is None else json.dumps(value, ensure_ascii=False)
        if written is not None:
            ujson_loads(written)  # with what `datasets` reads it: raises for numbers that it cannot
        return written

    if pa.types.is_list(type_):
        texts = [None if items is None else [text(item) for item in items] for items in values]
        return pa.array(texts, pa.list_(pa.string())).cast(type_)
    return pa.array([text(value) for value in values], pa.string()).cast(type_)


def _is_exact(array, values):
    """Whether objects come back from Arrow as they went in: the same fields, in the same order, of the same types."""
    return "struct<" not in str(array.type) or json.dumps(array.to_pylist()) == json.dumps(values)


def _misfit(file, column, values, start, before):
    """The error for the first of these values that does not fit in one column with those before it."""
    for row, value in enumerate(values, start):
        try:
            before = _common_type([value], before)
        except UNFIT as error:
            kind, reason = KINDS.get(type(value), type(value).__name__), _first_line(error)
            return DataError(
                f"{file}, row {row}: column {_short(column)} holds {kind} ({repr(value)[:40]}), which does not fit the "
                f"rows before it ({reason}). Make them one kind."
            )
    last = start + len(values) - 1  # each fits those before it, but there is no type for all of them
    return DataError(f"{file}, rows {start} to {last}: column {_short(column)} holds values of no common type.")


@functools.cache
def _temporary_folder():
    """A folder that goes when Python ends; not under the system's, which is often memory and smaller than the data."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="helpers-", dir=cache, ignore_cleanup_errors=True)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="helpers-", ignore_cleanup_errors=True)


def _temporary_file():
    return str(Path(_temporary_folder().name) / f"{uuid.uuid4().hex}.arrow")


# ---- Checking --------------------------------------------------------------------------------------

# What a column may hold, as regular expressions for `_kind`.
TEXT, LABEL = r"string.*|null", r"(list of )?(string.*|null|bool|u?int\d+|float\d+)"
WORDS, TAGS = r"list of (string.*|null)", r"list of (string.*|null|u?int\d+)"
HIDDEN = {None, "-1", "?"}  # how test sets are published without their labels
NO_VALUE = {"nan", "NaN", "null", "NULL", "None", "<NA>", "#N/A", "\\N"}  # what programs write for a missing value


def check(dataset, *, text="text", label="label", labels=None, name=None, duplicates="error"):
    """Checks texts and labels, reports every problem in one error, and makes the labels classes.

    `dataset` is a `Dataset`, or a dict of splits: then the training split says which labels there are,
    and a text of another split must not be in it (`duplicates="ignore"` lets that pass). `text` may be
    two columns for pairs of sentences. `labels` are the allowed labels, in the order of their numbers;
    without it they are those found, sorted. Labels may be text or whole numbers: the class of label 3
    is then named "3", or by `labels`, words in the order of the numbers (without one of these: of 0, 1, 2, ...).
    Spaces around a label do not count, and "1.0" is "1"; two labels that look the same are a problem.
    `name` stands before the row number in errors; a `Dataset` straight from `read` has the name of its file.

    Where a row may have several labels, the column holds lists of them; or `label` is a list of columns of 0 and 1, one
    for each class, which become one column "label" of lists (without a column `label`, all such columns are taken).

    Returns the same with the label column as `ClassLabel`, or a list of them. Raises `DataError` with all problems, the
    first five rows of each, counted in the order of `dataset`: so check before you shuffle.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"text": ["Good", "Bad", " "], "label": ["positive", "negative", "postive"]})
    >>> check(rows, labels=["negative", "positive"], name="reviews.csv")
    Traceback (most recent call last):
    helpers.data.DataError: reviews.csv: 2 problems
      reviews.csv, row 3: the text in column "text" is empty. Fill it in, or drop the row.
      reviews.csv, row 3: label "postive" is not one of negative, positive (closest: positive). Correct it, or pass \
labels=[...].
    >>> check(rows.select([0, 1])).features["label"].names
    ['negative', 'positive']
    >>> rows = Dataset.from_dict({"text": ["You fool", "Hello"], "rude": [1, 0], "threat": [0, 0]})
    >>> check(rows, label=["rude", "threat"])["label"][:]
    [[0], []]

    Taught in notebooks/00_start_here.ipynb, "How it was done".
    """
    _known_duplicates(duplicates)
    splits, columns, problems = _splits(dataset, name), _columns(text), Problems()
    if hot := _hot_columns(next(iter(splits.values())), columns, label):
        for where, rows in splits.items():
            _check_hot(problems, where, rows, hot)
        problems.raise_all(name or ", ".join(splits))
        dataset, label = _each(dataset, lambda rows: _label_lists(rows, hot)), "label"
        splits = _splits(dataset, name)
    labelled, readable = {}, {}
    for where, rows in splits.items():
        texts_fit = [_fits(problems, where, rows, column, TEXT, "text") for column in columns]
        for column in itertools.compress(columns, texts_fit):
            _check_texts(problems, where, rows, column)
        if all(texts_fit):
            readable[where] = rows
        if labelled and label not in rows.column_names and not _closest(label, rows.column_names, ""):
            _note_hidden(problems, where, f'has no column "{label}"')
        elif _fits(problems, where, rows, label, LABEL, "text or whole numbers"):
            labelled[where] = rows
    names, numbers = _classes(problems, labelled, label, labels)
    if duplicates == "error" and len(readable) == len(splits):
        _check_leaks(problems, splits, columns)
    problems.raise_all(name or ", ".join(splits))
    return _each(dataset, lambda rows: _with_classes(rows, label, names, numbers))


def check_tokens(dataset, *, tokens="tokens", tags="tags", labels=None, name=None, duplicates="error"):
    """Checks sentences that are lists of words with a tag for each, and makes the tags classes.

    As `check`, with these problems: a sentence without words, an empty word, as many tags as words, a
    tag that is not O or B-X or the like (or not in `labels`), and one that its scheme does not allow at its place.
    Tags of the schemes IO, IOB1, BIOES, BMEWO and BILOU are made BIO ones, in which I-X follows B-X or I-X.
    Returns the same with the tags as lists of `ClassLabel`: O first, the others sorted.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"tokens": [["Ada", "King", "slept"]], "tags": [["B-PER", "E-PER", "O"]]})
    >>> check_tokens(rows).features["tags"].feature.names, check_tokens(rows)["tags"][0]
    (['O', 'B-PER', 'I-PER'], [1, 2, 0])

    Taught in notebooks/more/01b_named_entities.ipynb, "What the data says".
    """
    _known_duplicates(duplicates)
    splits, problems, usable = _splits(dataset, name), Problems(), {}
    for where, rows in splits.items():
        words_fit = _fits(problems, where, rows, tokens, WORDS, "lists of text")
        if _fits(problems, where, rows, tags, TAGS, "lists of text or whole numbers") and words_fit:
            _check_sentences(problems, where, rows, tokens, tags)
            usable[where] = rows
    names, numbers = _classes(problems, usable, tags, labels, tags=True)
    words = {tag: names[number] for tag, number in numbers.items()}
    scheme = _scheme(usable, tags, words)
    for where, rows in usable.items():
        for row, sentence in _labels(rows, tags):
            for message in _scheme_problems([words.get(tag, tag) for tag in sentence], scheme):
                problems.add(where, message, row)
    if duplicates == "error" and len(usable) == len(splits):
        _check_leaks(problems, splits, [tokens])
    problems.raise_all(name or ", ".join(splits))
    if scheme == "BIO":
        return _each(dataset, lambda rows: _with_classes(rows, tags, names, numbers))
    spread = [
        ("B" + name[1:], "I" + name[1:]) if scheme == "IOB1" and name != "O" else _as_bio([name], scheme)
        for name in names
    ]
    names = list(dict.fromkeys(itertools.chain.from_iterable(spread)))
    names = names if labels is not None else _in_order(names)
    return _each(dataset, lambda rows: _with_classes(_in_bio(rows, tags, words, scheme), tags, names))


def _known_duplicates(duplicates):
    if duplicates not in ("error", "ignore"):
        raise DataError(f'duplicates={duplicates!r} is not known. Pass "error" or "ignore".')


def _fits(problems, where, rows, column, kind, expected):
    """Whether a column is there, has rows and holds what it should; notes as a problem what does not fit."""
    if not _check_columns(problems, where, rows, [column]):
        return False
    if re.fullmatch(kind, _kind(rows.features[column])):
        return True
    hint = " One word a row? Make each sentence a row of lists, in JSON Lines." if "list" in expected else ""
    holds = f'column "{column}" holds {_kind(rows.features[column])}, not {expected}'
    problems.add(where, f"{holds}. Pass the name of the right column.{hint}")
    return False


def _check_texts(problems, where, rows, column, cure="Fill it in"):
    start = 1
    for values in _arrays(rows, column):
        missing = np.asarray(values.is_null())
        seen = pc.match_substring_regex(values.cast(pa.large_string()), r"[^\s\pZ\pC]").fill_null(True)
        for name, found in (("missing (null)", missing), ("empty", ~np.asarray(seen))):
            if found.any():
                message = f'the text in column "{column}" is {name}. {cure}, or drop the row.'
                problems.add(where, message, *(np.flatnonzero(found) + start))
        start += len(values)


def _check_sentences(problems, where, rows, tokens, tags):
    for row, (words, word_tags) in _numbered(rows, tokens, tags):
        if not words:
            problems.add(where, "the sentence has no words. Drop the row.", row)
        elif not all(map(_is_seen, words)):
            problems.add(where, "a word is empty or null. Drop the word and its tag.", row)
        if len(words or []) != len(word_tags or []):
            problems.add(where, f"{tokens} and {tags} differ in length. Give each word one tag.", row)


# The schemes of tags: each has B-X for the first word of an entity or I-X for one inside it; IOB1 has B-X only between
# two entities of one kind; BIOES and BILOU have letters for the last word and for the only one too.
ENDS, SINGLE, INSIDE = "EL", "SUW", "IM"


def _scheme(splits, tags, words):
    """The scheme of the tags of all splits: "BIO", "IOB1", or "BIOES" (BILOU is the same in other letters)."""
    if any(word[:2] in [f"{letter}-" for letter in ENDS + SINGLE + "M"] for word in words.values()):
        return "BIOES"
    inside, begun = False, False
    for rows in splits.values():
        for _, sentence in _labels(rows, tags):
            sentence = [words.get(tag, tag) or "O" for tag in sentence]
            for before, tag in itertools.pairwise(["O", *sentence]):
                if before[2:] != tag[2:] or before == "O":
                    inside, begun = inside or tag.startswith("I-"), begun or tag.startswith("B-")
    return "IOB1" if inside and not begun else "BIO"


def _scheme_problems(sentence, scheme):
    """What is wrong with the tags of a sentence, if anything."""
    for before, tag in itertools.pairwise([None, *sentence, *(["O"] if scheme == "BIOES" else [])]):
        before, tag = before or "", tag or ""
        goes_on = before[:1] in ("B", *INSIDE) and before[1:2] == "-" and before[2:] == tag[2:]
        if tag[1:2] == "-" and tag[0] in ENDS + INSIDE and scheme != "IOB1" and not goes_on:
            place = f'follows "{before}"' if before else "starts a sentence"
            yield f'tag "{tag}" {place}. {tag[0]}-X has to follow B-X or I-X: make it B- there.'
        elif scheme == "BIOES" and before[:2] in ("B-", "I-", "M-") and not (goes_on and tag[:1] in ENDS + INSIDE):
            yield f'tag "{before}" is not followed by one of the same entity. End it with E-X (or L-X), or make it S-X.'


def _as_bio(sentence, scheme):
    """The tags of a sentence in BIO, where B-X begins each entity and I-X goes on."""
    for before, tag in itertools.pairwise(["O", *sentence]):
        begins = tag[0] in "B" + SINGLE or (scheme == "IOB1" and before[2:] != tag[2:])
        yield tag if tag == "O" else ("B" if begins else "I") + tag[1:]


def _in_bio(rows, tags, words, scheme):
    """The same rows with the words of BIO tags."""
    as_text = _label_reader(rows.features[tags])

    def change(batch):
        return {tags: [list(_as_bio([words[as_text(tag)] for tag in values], scheme)) for values in batch[tags]]}

    return _map(rows.with_format(None), change, features=Features(rows.features | {tags: List(Value("string"))}))


def _hot_columns(rows, texts, label):
    """The columns of 0 and 1 that stand for a class each, if the labels are in such columns."""
    if not isinstance(label, str):
        return list(label)
    if label != "label" or label in rows.column_names:
        return []
    one_label = [name for name in rows.column_names if re.fullmatch(LABEL, _kind(rows.features[name]))]
    others = [name for name in one_label if name not in texts and not _is_list(rows.features[name])]
    found = [name for name in others if _label_counts(rows, name, most=2).keys() <= HOT.keys()]
    return found if len(found) > 1 else []


HOT = {"0": False, "1": True, "false": False, "true": True, "False": False, "True": True}


def _check_hot(problems, where, rows, hot):
    """Notes what is neither 0 nor 1 in columns that stand for a class each."""
    for name in hot if _check_columns(problems, where, rows, hot) else ():
        what = f'column "{name}" holds %s, not 0 or 1. Correct it, or drop the row.'
        slips = {value: what % _short(value) for value in _label_counts(rows, name).keys() - HOT.keys()}
        _note_slips(problems, where, rows, name, slips)


def _label_lists(rows, hot):
    """The same rows with one column of lists of classes for columns of 0 and 1."""
    classes = List(ClassLabel(names=hot))
    features = Features({name: kind for name, kind in rows.features.items() if name not in hot} | {"label": classes})
    readers = {name: _label_reader(rows.features[name]) for name in hot}

    def gather(batch):
        columns = [[HOT[readers[name](value)] for value in batch[name]] for name in hot]
        return {"label": [np.flatnonzero(row).tolist() for row in zip(*columns, strict=True)]}

    return _map(rows.with_format(None), gather, remove_columns=hot, features=features)


def _check_leaks(problems, splits, columns):
    """Notes the rows of other splits whose text is in the training split (the first) too."""
    train, *others = splits
    trained = _hashes(splits[train], columns) if others else []
    for where in others:
        hashes = _hashes(splits[where], columns)
        leaked = np.flatnonzero(np.isin(hashes, trained) & (hashes != 0))
        if len(leaked):
            twin = int(np.argmax(trained == hashes[leaked[0]])) + 1
            message = f"the same text is in {train} (the first is row {twin} there), so a score would be too good."
            cure = 'Drop it with data.without_overlaps, or pass duplicates="ignore".'
            problems.add(where, f"{message} {cure}", *(leaked + 1))


def _note_hidden(problems, where, what):
    cure = "It was published without labels: leave this split out, and hold out rows of your own with data.split."
    problems.add(where, f"{what}. {cure}")


def _classes(problems, splits, label, labels, tags=False):
    """The names of the classes and {label as text: its number}; notes the labels that are none of them."""
    if not splits:
        return [], {}
    counts = {where: _label_counts(rows, label) for where, rows in splits.items()}
    for where, found in counts.items():
        if len(found) > MOST_CLASSES:
            problems.add(where, f'column "{label}" has more than {MOST_CLASSES:,} different values. Is it the label?')
            return [], {}
    first = next(iter(splits))
    trained, feature = [value for value in counts[first] if value is not None], splits[first].features[label]
    names = [str(value) for value in labels] if labels is not None else _class_names(feature)
    source = "" if names else f", the labels of {first}"
    names = names or _in_order(trained)
    keys = [_label_text(name) for name in names]
    if twice := [name for name in names if keys.count(_label_text(name)) > 1] if labels is not None else []:
        raise DataError(f"labels=[...] has {_short(twice[0])} twice. Take one out.")
    if trained and all(map(_is_number, trained)) and not any(map(_is_number, names)):  # words for 0, 1, 2, or for 1, 5
        keys = _in_order(trained) if len(trained) == len(names) else [str(number) for number in range(len(names))]
    for where, rows in splits.items():
        found = counts[where]
        if found and found.keys() <= HIDDEN and (where == first or not found.keys() & {*keys}) and not tags:
            shown = "-1" if "-1" in found or _class_names(rows.features[label]) else "?" if "?" in found else "missing"
            _note_hidden(problems, where, f"every {label} is {shown}")
            continue
        slips = {} if not source else _odd_tags(found) if tags else _odd_labels(found, label)
        for value in found.keys() - {*keys, *slips, None}:
            closest = _closest(value, keys, "closest")
            what = f"{label} {_short(value)} is not one of {_names(keys)}{source}{closest}"
            slips[value] = f"{what}. Correct it, or pass labels=[...]."
        if slips or None in found:
            what = "a tag" if tags else f"the {label}"
            missing = {None: f"{what} is missing. Fill it in, or drop the row."}
            _note_slips(problems, where, rows, label, missing | slips)
    if len(trained) == 1 and trained[0] not in HIDDEN and not _is_list(feature):
        problems.add(first, f"every {label} is {_short(trained[0])}. A classifier needs two classes.")
    return names, {key: number for number, key in enumerate(keys)}


def _note_slips(problems, where, rows, label, slips):
    """Notes the rows of the first few of `slips`, {label: what is wrong with it}; None is a label that is missing."""
    shown = dict(itertools.islice(slips.items(), SHOWN + 1 if None in slips else SHOWN))
    for row, values in _labels(rows, label):
        for value in shown.keys() & set(values):
            problems.add(where, shown[value], row)
    if len(slips) > len(shown):
        problems.add(where, f"{len(slips) - len(shown)} more values of {label} are wrong too.")


def _odd_labels(counts, label):
    """{label: what is wrong with it}, for what looks like a slip where nobody said which labels there are."""
    slips, spelled = {}, {}
    numbers = sorted((one for one in counts if one is not None and _is_number(one)), key=lambda one: -counts[one])
    for value in numbers:
        usual = spelled.setdefault(float(value), value)
        if not float(value).is_integer():
            slips[value] = f"label {_short(value)} has a fraction: classes are text or whole numbers. Round it."
        elif usual != value:
            slips[value] = f"label {_short(value)} is {_short(usual)} with other zeros or signs. Write it one way."
    if "-1" in counts and {"0", "1", "2"} <= counts.keys():  # -1, 0, 1 are classes of some
        slips["-1"] = 'label "-1" beside 0, 1, 2 marks rows that nobody labelled. Drop them, or pass labels=[...].'
    words = [value for value in counts if value is not None and re.search(r"\w", value)]
    for value in sorted((one for one in counts if one not in {None, *numbers}), key=lambda value: -counts[value]):
        usual = spelled.setdefault(_as_seen(value), value)
        if value in NO_VALUE or (len(words) > 1 and value not in words):
            cure = "Drop the row, or pass labels=[...] if it is a class"
            slips[value] = f"label {_short(value)} is how a missing label is written. {cure}."
        elif value.casefold() == label.casefold():
            slips[value] = f"label {_short(value)} is the name of its column: a header in the middle. Drop the row."
        elif usual != value:
            what = f"label {_short(value)} differs from {_short(usual)} in case or unseen signs only"
            slips[value] = f"{what}. Write it one way."
    return slips


def _as_seen(text):
    """Equal for texts that differ in case, white space, the way an accent is written, or signs that nobody sees."""
    import regex

    return " ".join(regex.sub(r"[\p{Cf}\ufe0f]|[^\P{Cc}\s]", "", unicodedata.normalize("NFC", text.casefold())).split())


def _odd_tags(counts):
    odd = {tag: "Use O, B-X and I-X" for tag in counts if tag is not None and not TAG.fullmatch(tag)}
    odd |= {tag: f"Write {letter}-{kind}" for tag in odd for kind, letter in re.findall(r"^(\S+)[-_]([BI])$", tag)}
    return {tag: f"tag {_short(tag)} is not a BIO tag. {cure}, or pass labels=[...]." for tag, cure in odd.items()}


def _in_order(values):
    if values and all(map(_is_number, values)):
        return sorted(values, key=float)
    return sorted(values, key=lambda value: (value != "O", value))


def _with_classes(rows, label, names, numbers=None):
    """The same rows with the numbers of classes for labels."""
    feature, numbers = rows.features[label], numbers or {name: number for number, name in enumerate(names)}
    if _class_names(feature) == names:
        return rows
    classes = ClassLabel(names=names)
    features = Features(rows.features | {label: List(classes) if _is_list(feature) else classes})
    as_text = _label_reader(feature)

    def encode(batch):
        coded = [[numbers.get(as_text(one), -1) for one in values] for values in map(_several, batch[label])]
        return {label: coded if _is_list(feature) else [number for (number,) in coded]}

    return _map(rows.with_format(None), encode, features=features)


# ---- Splitting and looking --------------------------------------------------------------------------


def split(dataset, *, validation=0.1, test=0.1, label="label", text="text", seed=0):
    """Splits into train, validation and test, with equal texts always in the same split.

    Where `label` is a `ClassLabel` (after `check`) each class is split on its own, so the shares of the
    classes are kept, and each has at least one text in each split. `validation` and `test` are shares
    of the texts; 0 leaves that split out. The same seed gives the same split; rows keep their order.

    Raises `DataError` when a class has fewer different texts than there are splits.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"text": [f"text {i}" for i in range(20)], "label": ["a", "b"] * 10})
    >>> split(check(rows)).num_rows
    {'train': 16, 'validation': 2, 'test': 2}
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise DataError(f"validation={validation} and test={test} are shares of the rows: together less than 1.")
    _single(dataset, [*_columns(text), *({label} - {None, "label"})])
    shares = {name: share for name, share in (("validation", validation), ("test", test)) if share}
    _, first, group = np.unique(_hashes(dataset, _columns(text)), return_index=True, return_inverse=True)
    feature, classes = dataset.features.get(label), np.zeros(len(first), dtype=int)
    if isinstance(feature, ClassLabel):
        classes = np.concatenate(list(map(np.asarray, _arrays(dataset, label))))[first]
    part_of_text, problems, random = np.zeros(len(first), dtype=int), Problems(), np.random.default_rng(seed)
    for number in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == number))
        if len(members) <= len(shares):
            what = f"class {_short(feature.names[number])}" if isinstance(feature, ClassLabel) else "the data set"
            texts = f"{len(members)} different text{'' if len(members) == 1 else 's'}"
            needs = f"{len(shares) + 1} splits need one each. Add rows, merge it with another class, or drop it."
            problems.add(_file_name(dataset), f"{what} has {texts}, and {needs}")
        for part, share in enumerate(shares.values(), 1):
            free = members[part_of_text[members] == 0]
            part_of_text[free[: max(1, min(round(share * len(members)), len(free) - 1))]] = part
    problems.raise_all()
    parts = part_of_text[group]
    numbered = enumerate(["train", *shares])
    return DatasetDict({name: dataset.select(np.flatnonzero(parts == part)) for part, name in numbered})


class Overlaps(pd.DataFrame):
    """What `overlaps` found: a row for each kind of duplicate and each pair of splits.

    >>> from datasets import Dataset
    >>> overlaps({name: Dataset.from_dict({"text": ["Good!"]}) for name in ("train", "test")}).leaks
    1
    """

    @property
    def leaks(self):
        """How many rows of the other splits are in the training split too, exactly or nearly."""
        train = self.attrs.get("train", "train")
        leaks = (self["kind"] == "nearly") & (self["also in"] == train) & (self["of"] != train)
        return int(self["rows"][leaks].sum())


def overlaps(splits, *, text="text"):
    """Counts texts that are in a split twice, or in two splits, exactly and nearly.

    "Nearly" means equal after case, white space and punctuation are put aside, and includes "exactly".
    Each line counts the rows of one split (`of`) whose text came earlier in that split, or is in a split
    before it (`also in`; train is first); `first` has the numbers of the first five. Texts are compared
    by 64-bit hashes, so memory is 8 bytes a row.

    >>> from datasets import Dataset
    >>> rows = lambda *texts: Dataset.from_dict({"text": texts})
    >>> print(overlaps({"train": rows("Good!", "Bad", "Bad"), "test": rows("good", "Bad")}))
          kind     of also in  rows  share first
    0  exactly  train   train     1  0.333     3
    1  exactly   test   train     1  0.500     2
    2   nearly  train   train     1  0.333     3
    3   nearly   test   train     2  1.000  1, 2

    Taught in notebooks/01_classification.ipynb, "A leak, planted".
    """
    columns, results = _columns(text), []
    splits = _splits(splits, needs=columns)
    for kind in ("exactly", "nearly"):
        hashes = {where: _hashes(rows, columns, nearly=kind == "nearly") for where, rows in splits.items()}
        for i, (of, own) in enumerate(hashes.items()):
            again = np.ones(len(own), dtype=bool)
            again[np.unique(own, return_index=True)[1]] = False
            for other in list(hashes)[: i + 1]:
                twice = (again if other == of else np.isin(own, hashes[other])) & (own != 0)
                rows = np.flatnonzero(twice) + 1
                if len(rows):
                    share, first = round(len(rows) / len(own), 3), ", ".join(map(str, rows[:SHOWN]))
                    results.append((kind, of, other, len(rows), share, first))
    table = Overlaps(results, columns=["kind", "of", "also in", "rows", "share", "first"])
    table.attrs["train"] = next(iter(splits))
    return table


def without_overlaps(splits, *, text="text"):
    """Drops the rows of the training split whose text is nearly the same as one of another split.

    >>> from datasets import Dataset
    >>> rows = lambda *texts: Dataset.from_dict({"text": texts})
    >>> without_overlaps({"train": rows("Good!", "Bad"), "test": rows("good")})["train"]["text"][:]
    ['Bad']
    """
    if not isinstance(splits, dict):
        raise DataError("expected a dict of splits, got one Dataset. Use data.split first.")
    columns = _columns(text)
    ordered = _splits(splits, needs=columns)
    train, *others = ordered
    hashes = {where: _hashes(rows, columns, nearly=True) for where, rows in ordered.items()}
    elsewhere = np.concatenate([hashes[train][:0], *(hashes[where] for where in others)])
    leaked = np.isin(hashes[train], elsewhere)
    kept = np.flatnonzero(~leaked | (hashes[train] == 0))
    return DatasetDict(dict(splits) | {train: ordered[train].select(kept)})


def class_balance(dataset, *, label="label"):
    """Counts the rows of each class (or the words of each tag), of a `Dataset` or of each split.

    >>> from datasets import Dataset
    >>> class_balance(Dataset.from_dict({"label": ["spam", "ham", "ham"]}))  # doctest: +NORMALIZE_WHITESPACE
           count  share
    class
    ham        2  0.667
    spam       1  0.333
    """
    results = []
    for where, rows in _splits(dataset, needs=[label]).items():
        counts = _label_counts(rows, label)
        if len(counts) > MOST_CLASSES:
            what = f'column "{label}" has more than {MOST_CLASSES:,} different values'
            raise DataError(f"{where}: {what}. Is it the label?")
        names = _class_names(rows.features[label]) or _in_order(counts.keys() - {None})
        for name in [*names, *({None} & counts.keys())]:
            share = round(counts[name] / counts.total(), 3)
            results.append({"split": where, "class": name, "count": counts[name], "share": share})
    table = pd.DataFrame(results).set_index(["split", "class"])
    return table if isinstance(dataset, dict) else table.droplevel("split")


def label_maps(dataset, *, label="label"):
    """The classes as a model's configuration has them; works for tags too.

    >>> from datasets import Dataset
    >>> label_maps(check(Dataset.from_dict({"text": ["Good", "Bad"], "label": ["yes", "no"]})))
    {'num_labels': 2, 'id2label': {0: 'no', 1: 'yes'}, 'label2id': {'no': 0, 'yes': 1}}
    """
    where, rows = next(iter(_splits(dataset, needs=[label]).items()))
    names = _class_names(rows.features[label])
    if names is None:
        raise DataError(f'{where}: column "{label}" has no classes yet. Pass the data through data.check first.')
    numbers = {name: number for number, name in enumerate(names)}
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}


# ---- Conversations -----------------------------------------------------------------------------------

CHATS = ("messages", "conversations", "conversation", "contents")
PAIRS = (  # columns that data sets have: a line of the prompt each, and the answer last
    *(("instruction", more, said) for more in ("input", "context") for said in ("output", "response")),
    ("instruction", "output"),
    ("instruction", "response"),
    ("context", "question", "answers"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "systemInstruction")
ROLES = ("system", "user", "assistant", "tool")
WRITTEN = {"from": "role", "value": "content", "parts": "content"}  # as ShareGPT and Gemini call them
SPEAKERS = {"human": "user", "developer": "system"}
SPEAKERS |= dict.fromkeys(("gpt", "chatgpt", "chatbot", "model"), "assistant")
SPEAKERS |= dict.fromkeys(("function", "observation", "function_response", "ipython"), "tool")


def to_messages(dataset, *, prompt=None, answer=None, system=None):
    """Turns rows into conversations: one column `messages`, a list of {"role", "content"} that ends with an answer.

    Known are conversations (a column `messages`, `conversations` or `contents`, or TRL's `prompt` and `completion`;
    lists or JSON text; the names of roles of OpenAI, ShareGPT and Gemini; contents that are lists of text parts), the
    pairs of columns in `PAIRS`, such as `instruction`, `input` (it may be empty) and `output` of Alpaca, with its
    `history`, or `context` and `response` of Dolly, and any others that you name: `answer` is a column, `prompt` a
    column or a format string such as "{passage} {question}". Of SQuAD's `answers` the first is taken. A column of
    `SYSTEMS`, such as `system_prompt`, is the system's message of its row; `system` is that of all conversations. Works
    on a dict of splits too.

    Where a conversation calls tools, messages keep their `tool_calls` exactly as they are in the file, messages of the
    role `tool` answer them, and a column `tools` stays too: both are JSON, as `datasets.Json`.

    Raises `DataError` with all problems, the first five rows of each.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"passage": ["The lamp is red."], "question": ["Which colour?"], "reply": ["Red"]})
    >>> to_messages(rows, prompt="{passage} {question}", answer="reply")["messages"][0][0]["content"]
    'The lamp is red. Which colour?'
    >>> to_messages(rows, prompt="question", answer="replies")
    Traceback (most recent call last):
    helpers.data.DataError: the data: has no column "replies", it has passage, question, reply (closest: reply). \
Rename one to it, or pass the name of yours.

    Taught in notebooks/02_generation.ipynb, "From a row to tokens".
    """
    if (prompt is None) != (answer is None):
        raise DataError('prompt= and answer= belong together, such as prompt="question", answer="reply". Pass both.')
    splits, problems, needs = _splits(dataset), Problems(), set()
    for where, rows in splits.items():
        shape = _shape(rows, prompt, answer)
        if isinstance(shape, str):
            problems.add(where, shape)
            continue
        told = _with_text_answers(rows, shape.answer)
        fits = _check_columns if shape.chat else functools.partial(_check_pairs, prompt=shape.prompt)
        if fits(problems, where, told, shape.chat or shape.answer):
            needs |= _check_turns(problems, where, told, shape, system)
    problems.raise_all(", ".join(splits))
    return _each(dataset, lambda rows: _conversations(rows, _shape(rows, prompt, answer), system, needs))


class _Shape(NamedTuple):
    """The columns of lists of messages; or the prompt and the column of the answer; and those that come with them."""

    chat: list
    prompt: str | list
    answer: str
    more: list


def _shape(rows, prompt, answer):
    """The `_Shape` of rows, or what is wrong with their columns."""
    columns = rows.column_names
    lists = [name for name in columns if _kind(rows.features[name]) == "list of objects"]
    pair = next((pair for pair in PAIRS if {*pair} <= {*columns}), None)
    chat = next((name for name in CHATS if name in (columns if pair is None else lists)), None)
    if prompt is not None:
        told = [*_fields(prompt), answer if answer in columns else answer.removesuffix(".text")]
    elif chat or pair:
        told = [chat] if chat else [*pair]
    else:
        return (
            'has no column "messages" (or "conversations" or "contents"), nor "instruction" and "output", it has '
            f'{_names(columns)}. Rename one, or name yours: prompt="{{passage}} {{question}}", answer="reply".'
        )
    is_chat = told == [chat] or {*told} <= {*lists}
    others = sorted({*itertools.chain(*PAIRS)} & {*columns} - {*told})
    if prompt is None and not is_chat and others:
        return (
            f"has {_names(told)}, and {_names(others)} too. Say what belongs to the prompt, such as "
            f'prompt="{{{others[0]}}} {{{told[0]}}}", answer="{told[-1]}".'
        )
    known = (*SYSTEMS, "tools", *(["history"] if prompt is None else []))
    more = [name for name in known if name in columns and name not in told]
    return _Shape(told if is_chat else [], prompt or told[:-1], told[-1], more)


def _check_pairs(problems, where, rows, answer, prompt):
    """Whether a prompt (or source) and an answer (or target) are texts; notes what is wrong with them."""
    fields = _fields(prompt)
    if answer in fields:
        problems.add(where, f'column "{answer}" is the answer, and in the prompt too. Take it out of {_short(prompt)}.')
        return False
    may_be_empty = () if isinstance(prompt, str) or prompt[0] != "instruction" else prompt[1:]
    fitting = [column for column in [*fields, answer] if _fits(problems, where, rows, column, TEXT, "text")]
    for column in fitting:
        if column not in may_be_empty:
            unanswered = "This question has no answer: fill in one that says so"
            _check_texts(problems, where, rows, column, unanswered if column == "answers" else "Fill it in")
    return len(fitting) == len(fields) + 1


def _with_text_answers(rows, column):
    """The same rows with the first of SQuAD's `answers`, or of a list, as a text; null where there is none."""
    if column not in rows.column_names or _kind(rows.features[column]) not in ("objects", "list of string"):
        return rows

    def first(value):
        texts = value.get("text") if isinstance(value, dict) else value
        texts = [texts] if isinstance(texts, str) else texts
        return texts[0] if isinstance(texts, list) and texts and isinstance(texts[0], str) else None

    features = Features(rows.features | {column: Value("string")})
    return _map(rows.with_format(None), lambda batch: {column: list(map(first, batch[column]))}, features=features)


def _check_turns(problems, where, rows, shape, system):
    """Notes what is wrong with conversations; returns what they need: "writing" in our form, "JSON" for tools."""
    needs = {"JSON"} if "tools" in shape.more else set()
    pieces = _made_of(rows, shape).iter(BATCH)
    for row, values in enumerate(itertools.chain.from_iterable(map(_talks, pieces)), 1):
        try:
            messages, _ = _conversation(values, shape, system)
            needs |= {"writing"} if messages != values.get("messages") else set()
            needs |= {"JSON"} if any(message.keys() != {"role", "content"} for message in messages) else set()
        except ValueError as error:
            problems.add(where, f"{error}.", row)
    return needs


def _made_of(rows, shape):
    """The columns that make conversations, as Arrow."""
    told = shape.chat or [*_fields(shape.prompt), shape.answer]
    return rows.with_format("arrow").select_columns([*dict.fromkeys([*told, *shape.more])])


def _talks(table):
    """The rows of an Arrow table; JSON as it is in the file."""

    def value(found, type_):
        if (pa.types.is_list(type_) or pa.types.is_large_list(type_)) and found is not None:
            return [value(item, type_.value_type) for item in found]
        if isinstance(type_, pa.JsonType):
            return None if found is None else json.loads(found)
        return _without_nulls(found) if pa.types.is_struct(type_) else found

    columns = [[value(found, column.type) for found in column.to_pylist()] for column in table.columns]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _without_nulls(value):
    """Without the fields that are null: Arrow has them where other rows have them. In the arguments of a call nobody
    could tell which of them were in the file."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("arguments"), dict) and '": null' in json.dumps(value["arguments"], default=str):
        return value | {"arguments": UNSURE}
    return {name: _without_nulls(item) for name, item in value.items() if item is not None}


UNSURE = object()


def _conversation(row, shape, system):
    """The messages and the tools of a row in the house's form; a ValueError says what is wrong with them."""
    if shape.chat:
        messages = [_message(message) for name in shape.chat for message in _listed_in(row[name], name)]
    else:
        messages = list(_turns(row, shape.prompt, shape.answer))
    if not messages:
        raise ValueError("there are no messages. Drop the row")
    own = messages[:1] if messages[0]["role"] == "system" else []
    told = [system, *(_told(row[name], name) for name in SYSTEMS if name in shape.more)]
    told = list(dict.fromkeys(filter(None, [*told, *(message["content"] for message in own)])))
    if len(told) > 1:
        cure = "Leave system= out" if system else "Take one of them out"
        raise ValueError(f"there is a system message already, {_short(told[-1])}. {cure}")
    messages = [*({"role": "system", "content": text} for text in told), *messages[len(own) :]]
    order = "".join("c" if message.get("tool_calls") else message["role"][0] for message in messages)
    if not re.fullmatch("s?(u(ct+)*a)*u(ct+)*[ac]", order):
        tools = " and answers of tools after the calls of the assistant" if {*order} & {*"ct"} else ""
        raise ValueError(
            "user and assistant do not take turns, the user first and an assistant's answer last, at most with a "
            f"system message in front{tools}. Join messages of one role, add the answer, or drop the row"
        )
    return messages, _decoded(row.get("tools"), "the list of tools")


def _listed_in(value, name):
    """The messages of a cell, which may be JSON as text."""
    try:
        found = _decoded(value, "it") or []
    except ValueError as error:
        found = str(error)
    if not isinstance(found, list) or any(not isinstance(message, (dict, type(None))) for message in found):
        what = f'column "{name}" holds no list of {{"role": "user", "content": "..."}}, but {_short(found, 80)}'
        raise ValueError(f"{what}. Correct it, or name columns: prompt=, answer=")
    return found


def _told(value, name):
    """The text of a system's message that has a column of its own, or None."""
    if not value or (isinstance(value, str) and not _is_seen(value)):
        return None
    try:
        return _message({"role": "system", "content": value})["content"]
    except ValueError:
        raise ValueError(f'column "{name}" holds no text. Rename or correct it') from None


def _turns(row, prompt, answer):
    """Yields the messages of a row of columns: a prompt and an answer, and what was said before them."""
    for turn in row.get("history") or []:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(s, str) and _is_seen(s) for s in turn)):
            raise ValueError("history holds more than pairs of a question and an answer. Correct it")
        asked, said = turn
        yield from ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
    lines = [_filled(prompt, row)] if isinstance(prompt, str) else [row[name] or "" for name in prompt]
    question = lines[0] if len(lines) == 1 else "\n".join(filter(str.strip, lines))
    yield from ({"role": "user", "content": question}, {"role": "assistant", "content": row[answer]})


def _message(message):
    """A message in the house's form: role, content and, where there are such, the calls of tools."""
    if message is None:
        raise ValueError("a message is null. Drop the row")
    message = {WRITTEN.get(key, key): value for key, value in message.items() if value is not None}
    role = str(message.get("role")).lower()
    role = SPEAKERS.get(role, role)
    content = message.get("content")
    if role == "function_call":  # ShareGPT writes a call as JSON
        role, content, message["function_call"] = "assistant", None, _decoded(content, "a call")
    if role not in ROLES:
        closest = _closest(role, ROLES, "closest")
        raise ValueError(f"role {_short(role)} is not one of {_names(ROLES)}{closest}. Rename it")
    if message.get("weight", 1) == 0 or False in (message.get("train"), message.get("training")):
        raise ValueError("weight 0 takes an answer out of the loss: not done here. End the conversation before it")
    if isinstance(content, dict):  # one part, or Gemini's object of several
        content = content.get("parts", [content])
    if isinstance(content, list):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part or {} for part in content]
        if odd := [part.get("type") or _names(part) for part in parts if not isinstance(part.get("text"), str)]:
            raise ValueError(f"a part of the content is {_short(odd[0])}, not text. Drop the row")
        content = "\n".join(part["text"] for part in parts)
    calls = message.get("tool_calls") or [
        {"type": "function", "function": call} for call in [message.get("function_call")] if call
    ]
    if calls and not (_objects(calls) and all(isinstance(call.get("function", call), dict) for call in calls)):
        raise ValueError('tool_calls are no list of {"type": "function", "function": {"name": ..., "arguments": ...}}')
    if UNSURE in [call.get("function", call).get("arguments") for call in calls]:
        raise ValueError("the arguments of a tool call hold null, which Arrow may have put there: use data.read")
    if not (isinstance(content, str) and _is_seen(content)) and not (calls and content in (None, "")):
        raise ValueError(f"a message of the {role} is empty or null. Fill it in, or drop the row")
    kept = {"role": role, "content": content} | ({"tool_calls": calls} if calls else {})
    more = ("tool_call_id", "name") if role == "tool" or calls else ()
    return kept | {name: message[name] for name in (*more, "reasoning_content", "thinking") if message.get(name)}


def _decoded(value, what):
    """What a text of JSON says, or one that Python writes; anything else is left as it is."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return DECODER.decode(value.strip())
    except (RecursionError, ValueError) as error:
        with contextlib.suppress(RecursionError, SyntaxError, ValueError, MemoryError):
            return ast.literal_eval(value.strip())
        raise ValueError(f"{what} is no JSON ({error}). Correct or rename it, or drop the row") from None


def for_template(message):
    """A message as chat templates take it: without nulls, and with objects where OpenAI's files have JSON as text.

    >>> for_template({"role": "assistant", "tool_calls": [{"function": {"arguments": '{"city": "Bern"}'}}]})
    {'role': 'assistant', 'tool_calls': [{'function': {'arguments': {'city': 'Bern'}}}]}
    """
    message = {name: value for name, value in message.items() if value is not None}
    calls = [dict(call, function=dict(call.get("function") or {})) for call in message.get("tool_calls", [])]
    for call in calls:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return message | ({"tool_calls": calls} if calls else {})


def _conversations(rows, shape, system, needs):
    """The column of messages, with the tools where there are some."""
    plain = "JSON" not in needs
    if not needs and not system and rows.features.get("messages") == MESSAGES["messages"]:
        return rows.select_columns("messages")  # nothing to write

    def talks(table):
        messages, tools = zip(*(_conversation(row, shape, system) for row in _talks(table)), strict=True)
        if plain:
            return {"messages": list(messages)}
        kept = {"messages": _json_array(messages, pa.list_(pa.json_())), "tools": _json_array(tools, pa.json_())}
        return pa.table(kept)

    rows = _made_of(_with_text_answers(rows, shape.answer), shape)
    features = MESSAGES if plain else Features({"messages": List(Json()), "tools": Json()})
    made = _map(rows, talks, remove_columns=rows.column_names, features=features)
    return made if plain or "tools" in rows.column_names else made.remove_columns("tools")


def _fields(prompt):
    """The columns that a prompt names: itself, or those of a format string."""
    if not isinstance(prompt, str) or "{" not in prompt:
        return [prompt] if isinstance(prompt, str) else list(prompt)
    try:
        names = dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None)
        prompt.format(**dict.fromkeys(names, ""))
    except (ValueError, LookupError, AttributeError) as error:
        raise DataError(
            f'{_short(prompt)} is no format string ({_first_line(error)}). Write columns as in "{{passage}} '
            '{question}", and a brace that is meant as such twice: "{{".'
        ) from None
    if not names:
        raise DataError(f'{_short(prompt)} names no column. Write columns as in "{{passage}} {{question}}".')
    return list(names)


def _filled(prompt, row):
    return prompt.format(**row) if "{" in prompt else row[prompt]


# ---- What the functions above and `helpers.text` share -------------------------------------------------


@contextlib.contextmanager
def _no_progress_bars():
    """Hides the progress bars of `datasets`, and leaves them as they were."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _columns(text):
    return [text] if isinstance(text, str) else list(text)


def _each(dataset, change):
    """The change of a `Dataset`, or of each split of a dict of them."""
    if isinstance(dataset, dict):
        return DatasetDict({name: change(rows) for name, rows in dataset.items()})
    return change(dataset)


def _map(rows, function, **options):
    """`Dataset.map` in batches, to a temporary file. Rows keep the order of your file, so its name stays for errors."""
    with _no_progress_bars():
        mark = uuid.uuid4().hex  # nothing is looked up by it, and some functions cannot be hashed
        place = dict(cache_file_name=_temporary_file(), load_from_cache_file=False, new_fingerprint=mark)
        result = rows.map(function, batched=True, **place, **options)
    result.set_format(None)
    if _file_name(rows) != "the data":
        result.file_name = rows.file_name
    return result


def _file_name(rows):
    """The file that row numbers refer to; rows with indices, as `filter` gives, are numbered in another way."""
    return getattr(rows, "file_name", "the data") if rows._indices is None else "the data"


def _splits(dataset, name=None, needs=()):
    """{name for errors: Dataset}, "train" first; the first counts as the training split. Raises for missing columns."""
    splits = dataset if isinstance(dataset, dict) else {None: dataset}
    for rows in splits.values():
        if not isinstance(rows, Dataset):
            raise DataError(f"expected a Dataset or a dict of them, got {type(rows).__name__}. Use data.read first.")
    ordered = sorted(splits.items(), key=lambda item: item[0] != "train")
    named = {", ".join(filter(None, [name, key])) or _file_name(rows): rows for key, rows in ordered}
    problems = Problems()
    for where, rows in named.items():
        _check_columns(problems, where, rows, needs)
    problems.raise_all()
    return named


def _single(dataset, needs=()):
    if isinstance(dataset, dict):
        raise DataError(f"expected one Dataset, got the splits {_names(dataset)}. Pass one of them.")
    return next(iter(_splits(dataset, needs=needs).values()))


def _check_columns(problems, where, rows, columns):
    """Whether these columns are there, and rows in them; notes what is missing."""
    missing = [column for column in columns if column not in rows.column_names]
    for column in missing:
        has = _names(rows.column_names) + _closest(column, rows.column_names, "closest")
        problems.add(where, f'has no column "{column}", it has {has}. Rename one to it, or pass the name of yours.')
    if columns and rows.num_rows == 0:
        problems.add(where, "has no rows. Add some, or leave this split out.")
    return not missing and rows.num_rows > 0


def _numbered(rows, *columns):
    """Yields the number of each row, from 1, and its values in these columns; a piece at a time is in memory."""
    pieces = rows.with_format("arrow").select_columns(list(columns)).iter(BATCH)
    values = (zip(*(piece[column].to_pylist() for column in columns), strict=True) for piece in pieces)
    return enumerate(itertools.chain.from_iterable(values), 1)


def _arrays(rows, column):
    """Yields a column a piece at a time, as Arrow."""
    for piece in rows.with_format("arrow").select_columns([column]).iter(BATCH):
        yield piece[column].combine_chunks()


def _labels(rows, label):
    """Yields the number of each row and the list of its labels as text: one, or the tags of its words."""
    as_text = _label_reader(rows.features[label])
    return ((row, [as_text(one) for one in _several(value)]) for row, (value,) in _numbered(rows, label))


def _several(value):
    return value if isinstance(value, list) else [value]


def _label_reader(feature):
    """The function that makes a text of a label; None stands for one that is missing."""
    names = _class_names(feature)
    if names is None:
        return functools.lru_cache(_label_text)  # rows are many, labels few
    return lambda value: names[value] if value is not None and 0 <= value < len(names) else None


def _label_text(value):
    if isinstance(value, float):  # pandas makes floats of whole numbers where some are missing
        value = None if not math.isfinite(value) else int(value) if value.is_integer() else value
    if value is None or not str(value).strip():
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value).strip()
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", text)


def _label_counts(rows, label, most=MOST_CLASSES):
    """How often each label is there; stops where there are too many different ones for labels."""
    counts = collections.Counter()
    for _, values in _labels(rows, label):
        counts.update(values)
        if len(counts) > most:
            break
    return counts


def _hashes(rows, columns, nearly=False):
    """One 64-bit hash for the text of each row, 0 where there is none."""
    for column in columns:
        if not re.fullmatch(f"{TEXT}|{WORDS}", kind := _kind(rows.features[column])):
            what = f'{_file_name(rows)}: column "{column}" holds {kind}, not text'
            raise DataError(f"{what}. Pass the name of the right column.")
    hashes = [np.array([], dtype=np.uint64)]
    for texts in zip(*(_arrays(rows, column) for column in columns), strict=True):
        plain = [_joined(values) for values in texts]
        if nearly:
            plain = [_without_punctuation(values) for values in plain]
        joined = pc.binary_join_element_wise(*plain, pa.scalar("\x1f", pa.large_string()))
        blank = pc.equal(pc.utf8_trim_whitespace(joined), "")
        hashed = pd.util.hash_array(joined.to_numpy(zero_copy_only=False), categorize=False)
        hashes.append(np.where(np.asarray(blank), np.uint64(0), hashed))
    return np.concatenate(hashes)


def _joined(values):
    """Texts, or lists of words, as texts; an empty one where there is none."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.binary_join(values.cast(pa.list_(pa.string())), " ")
    return values.cast(pa.large_string()).fill_null("")


def _without_punctuation(texts):
    import regex

    plain = ((" ".join(regex.sub(r"\p{P}", " ", text.lower()).split()), text) for text in texts.to_pylist())
    return pa.array([short or text for short, text in plain], texts.type)  # ":)" and ":(" are not the same text


def _is_seen(text):
    """Whether a text has any sign but blanks and those that nobody sees."""
    return any(unicodedata.category(sign) not in ("Cc", "Cf", "Zl", "Zp", "Zs") for sign in text or "")


def _is_list(feature):
    return isinstance(feature, (datasets.List, datasets.LargeList))


def _class_names(feature):
    """The names of the classes of a `ClassLabel`, or of a list of them; else None."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _kind(feature):
    """The type of a column in words, such as "string", "int64" or "list of string"."""
    if _is_list(feature):
        return f"list of {_kind(feature.feature)}"
    dtype = getattr(feature, "dtype", None)
    return dtype.removeprefix("large_") if isinstance(dtype, str) else "objects"


def _is_number(text):
    return re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text.strip()) is not None


def _closest(word, words, say):
    near = difflib.get_close_matches(word, list(words)[:1000], n=1, cutoff=0.6)
    return f" ({say}: {near[0]})" if near else ""


def _short(value, width=40):
    text = str(value)
    text = " ".join(text.split()) if text.strip() else text
    return f'"{text[:width]}..."' if len(text) > width else f'"{text}"'


def _names(values):
    values = [str(value) for value in values]
    return ", ".join(values[:10]) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
