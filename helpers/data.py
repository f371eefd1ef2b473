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

A new file format is a generator from a path to rows (dicts), and a line in `READERS`. It is called
twice, gives the same rows both times, and raises `DataError` with the file's name and the row. A new
shape of conversation is a case in `_check_conversations` and in `_conversations`.
"""

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
import uuid
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

BATCH = 10_000  # rows looked at together: enough to be fast, few enough that long documents fit in memory
SHOWN = 5  # rows named in an error
MOST_CLASSES = 10_000  # a column with more different values than this is no label
LARGEST_CELL = 8 << 20  # bytes of one CSV cell; a longer one is a quotation mark that is never closed
ROLES = ("system", "user", "assistant")
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
        self.counts, self.first_rows = Counter(), {}

    def add(self, where, message, row=None):
        """Notes one problem; the same message for several rows becomes one line."""
        rows = self.first_rows.setdefault((where, message), [])
        if row is not None:
            self.counts[where, message] += 1
            if len(rows) < SHOWN:
                rows.append(row)

    def raise_all(self, name="the data"):
        """Raises one DataError with all the problems, or returns when there are none."""
        lines = []
        for (where, message), rows in self.first_rows.items():
            more = self.counts[where, message] - len(rows)
            numbers = ", ".join(map(str, rows)) + (f" and {more} more" if more else "")
            place = f", row{'s' if len(rows) > 1 else ''} {numbers}" if rows else ""
            lines.append(f"{where}{place}: {message}")
        if len(lines) == 1:
            raise DataError(lines[0])
        if lines:
            raise DataError("\n  ".join([f"{name}: {len(lines)} problems", *lines]))


# ---- Reading ---------------------------------------------------------------------------------------


def read(source, *, split=None):
    """Reads a file, a saved folder, a Hub id or a Dataset as one memory-mapped `Dataset`.

    `source` is the path of a .csv or .tsv file with a header, a .json file with a list of objects, a
    .jsonl or .ndjson file with one object per line, a .parquet file, a folder written by
    `save_to_disk`, a `Dataset`, or "owner/name" on the Hugging Face Hub. `split` picks one split
    where there are several. The name of a file is kept as `file_name`, for errors.

    A CSV file has no types, so all its columns come as text ("007" stays "007", and the word "None"
    stays a word); `check` turns the labels into classes. The separator is a comma or a tab by the
    file's name; where the first line has none of it, the most frequent of comma, semicolon and tab. It is
    an error when the first line looks like data: one of its cells is a number, repeats another cell, or
    is found again in its own column within the next 1,000 rows.

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
    dataset = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_rows(path)
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
        files = _names(sorted(file.name for file in path.glob("*.*") if file.suffix.lower() in FORMATS))
        holds = f"The folder holds {files}: pass one of them" if files else "Download a file and pass its path"
        raise DataError(
            f"{source}: could not be loaded ({type(error).__name__}: {_first_line(error)}). A folder has to be written "
            "by save_to_disk; for the Hub check the name on huggingface.co, the network, HF_HUB_OFFLINE and, for "
            f"private data, `hf auth login`. {holds}."
        ) from error


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
    """Raises for a file that is missing, empty, of an unknown format, or not UTF-8 (for that it is read once)."""
    if not path.exists():
        folder = "" if path.parent.is_dir() else f", and no folder {path.parent}"
        closest = _closest(path.name, [file.name for file in path.parent.glob("*")], "closest in its folder")
        raise DataError(f"{path.name}: there is no such file{folder}{closest}. Correct the path, or the Hub id.")
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path.name}: unknown format {path.suffix!r}. Use one of {', '.join(FORMATS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path.name}: the file is empty. Save it again from where it came.")
    if path.suffix.lower() == ".parquet":
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                guess = "utf-16" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
                raise DataError(
                    f"{path.name}, line {number}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is "
                    f"not UTF-8. If the file is {guess}, write a converted copy: `Path('utf8{path.suffix}').write_text("
                    f"Path({str(path)!r}).read_text('{guess}'), 'utf-8')`, and read that."
                ) from None


def _csv_rows(path):
    """Yields the rows of a CSV or TSV file as dicts of texts."""
    csv.field_size_limit(LARGEST_CELL)
    problems, examples, number = Problems(), {}, 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        usual = "\t" if path.suffix.lower() == ".tsv" else ","
        separator = usual if usual in first else max(usual + ",;\t", key=first.count)
        rows = (row for row in csv.reader(file, delimiter=separator, strict=True) if row)
        try:
            # As pandas does: a column without a name is most often an index that was saved with the rest.
            header = [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(next(rows, []))]
            for number, row in enumerate(rows, 1):
                if number <= 1000:
                    _check_header(path.name, header, row, number)
                if len(row) == len(header):
                    yield dict(zip(header, row, strict=True))
                    continue
                example = examples.setdefault(len(row), _short(separator.join(row)))
                cells = f"{len(row)} cell{'s' if len(row) > 1 else ''} where the header has {len(header)}"
                cure = f"Put quotation marks around a cell with a {separator!r} in it"
                problems.add(path.name, f"has {cells}, such as {example}. {cure}, and close each one.", number)
        except csv.Error as error:
            raise DataError(
                f"{path.name}, row {number + 1}: cannot be read as CSV ({error}). Close each quotation mark, and write "
                'one inside a quoted cell twice: "".'
            ) from None
    problems.raise_all(path.name)


def _check_header(file, header, row, number):
    for name, cell in itertools.zip_longest(header, row[: len(header)]):
        if _is_number(name):
            reason = f"{_short(name)} is a number"
        elif header.count(name) > 1:
            reason = f"{_short(name)} is there twice"
        elif name == cell:
            reason = f"{_short(name)} is found again in the same column in row {number}"
        else:
            continue
        raise DataError(
            f"{file}: the first line looks like data, not like column names: {reason}. "
            "Add a first line such as text,label, or rename that column."
        )


def _json_rows(path):
    """Returns the objects of a JSON list, which is held in memory whole."""
    rows = _parsed(path.name, path.read_text("utf-8-sig"))
    if not isinstance(rows, list):
        hint = "If it is one object per line, rename it to .jsonl."
        raise DataError(f'{path.name}: is not a list of objects ([{{"text": ...}}, ...]). {hint}')
    return rows


def _json_lines(path):
    """Yields the objects of a JSON Lines file."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed(path.name, line.rstrip(), number)


def _parsed(name, content, line=1):
    try:
        return json.loads(content)
    except (RecursionError, ValueError) as error:
        line, column = line + getattr(error, "lineno", 1) - 1, getattr(error, "colno", 1)
        raise DataError(
            f"{name}, line {line}: broken JSON: {getattr(error, 'msg', _first_line(error))} at column {column}. "
            "Correct that line; a list of objects belongs in a .json file, one object per line in a .jsonl file."
        ) from None


# For each ending, a function of the path that yields the rows as dicts. It is called twice: for types, then for values.
READERS = {".csv": _csv_rows, ".tsv": _csv_rows, ".json": _json_rows, ".jsonl": _json_lines, ".ndjson": _json_lines}
FORMATS = (*READERS, ".parquet")  # Parquet has types of its own and is read by `datasets`


def _read_parquet(path):
    try:
        with _no_progress_bars():
            return Dataset.from_parquet(str(path), cache_dir=tempfile.mkdtemp(dir=_temporary_folder().name))
    except (pa.ArrowException, datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(f"{path.name}: cannot be read as Parquet ({_first_line(error)}). Save it again.") from None


def _read_rows(path):
    """Writes the rows of a file as Arrow and maps them into memory.

    The file is read twice: a column's type is only known once its last row is seen.
    """
    types = {}
    for start, columns in _pieces(path):
        for name, values in columns.items():
            before = types.get(name, pa.null())
            try:
                types[name] = _common_type(values, before)
            except UNFIT:
                raise _misfit(path.name, name, values, start, before) from None
    file = _temporary_file()
    try:
        schema = pa.schema(list(types.items()))
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for _, columns in _pieces(path):
                n_rows = len(next(iter(columns.values()), ()))
                arrays = [pa.array(columns.get(name, [None] * n_rows), types[name]) for name in types]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        return Dataset.from_file(file)
    except UNFIT as error:
        raise DataError(f"{path.name}: has a column that `datasets` cannot hold ({_first_line(error)}).") from None


def _pieces(path):
    """Yields the number of the first row and the columns of each piece of a file."""
    rows = enumerate(READERS[path.suffix.lower()](path), 1)
    while piece := list(itertools.islice(rows, BATCH)):
        for number, row in piece:
            if not isinstance(row, dict):
                raise DataError(
                    f"{path.name}, row {number}: holds {KINDS.get(type(row), 'null')}, not an object. "
                    'Each row has to be an object such as {"text": "...", "label": "..."}; a list is a .json file.'
                )
        names = dict.fromkeys(itertools.chain.from_iterable(row for _, row in piece))
        yield piece[0][0], {name: [row.get(name) for _, row in piece] for name in names}


UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)
KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


def _common_type(values, before):
    """The Arrow type that holds these values and those before them; raises one of `UNFIT` where there is none."""
    schemas = [pa.schema([("x", type_)]) for type_ in (before, pa.array(values).type)]
    common = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    pa.array(values, common)
    return common


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
TEXT, LABEL = r"string.*|null", r"string.*|null|bool|u?int\d+|float\d+"
WORDS, TAGS = r"list of (string.*|null)", r"list of (string.*|null|u?int\d+)"


def check(dataset, *, text="text", label="label", labels=None, name=None, duplicates="error"):
    """Checks texts and labels, reports every problem in one error, and makes the labels classes.

    `dataset` is a `Dataset`, or a dict of splits: then the training split says which labels there are,
    and a text of another split must not be in it (`duplicates="ignore"` lets that pass). `text` may be
    two columns for pairs of sentences. `labels` are the allowed labels, in the order of their numbers;
    without it they are those found, sorted. Labels may be text or whole numbers: the class of label 3
    is then named "3", or `labels[3]` where `labels` are words. `name` stands before the row number in
    errors; a `Dataset` straight from `read` has the name of its file.

    Returns the same with the label column as `ClassLabel`. Raises `DataError` with all problems, the
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

    Taught in notebooks/00_start_here.ipynb, "How it was done".
    """
    _known_duplicates(duplicates)
    splits, columns, problems = _splits(dataset, name), _columns(text), Problems()
    labelled, readable = {}, {}
    for where, rows in splits.items():
        texts_fit = [_fits(problems, where, rows, column, TEXT, "text") for column in columns]
        for column in itertools.compress(columns, texts_fit):
            _check_texts(problems, where, rows, column)
        if all(texts_fit):
            readable[where] = rows
        if _fits(problems, where, rows, label, LABEL, "text or whole numbers"):
            labelled[where] = rows
    names, numbers = _classes(problems, labelled, label, labels)
    if duplicates == "error" and len(readable) == len(splits):
        _check_leaks(problems, splits, columns)
    problems.raise_all(name or ", ".join(splits))
    return _each(dataset, lambda rows: _with_classes(rows, label, names, numbers))


def check_tokens(dataset, *, tokens="tokens", tags="tags", labels=None, name=None, duplicates="error"):
    """Checks sentences that are lists of words with a BIO tag for each, and makes the tags classes.

    As `check`, with these problems: a sentence without words, an empty word, as many tags as words, a
    tag that is not O, B-X or I-X (or not in `labels`), and I-X that does not follow B-X or I-X.
    Returns the same with the tags as lists of `ClassLabel`: O first, the others sorted.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"tokens": [["Ada", "slept"]], "tags": [["B-PER", "O"]]})
    >>> check_tokens(rows).features["tags"].feature.names
    ['O', 'B-PER']

    Taught in notebooks/more/01b_named_entities.ipynb, "What the data says".
    """
    _known_duplicates(duplicates)
    splits, problems, usable = _splits(dataset, name), Problems(), {}
    for where, rows in splits.items():
        words_fit = _fits(problems, where, rows, tokens, WORDS, "lists of text")
        if _fits(problems, where, rows, tags, TAGS, "lists of text or whole numbers") and words_fit:
            _check_sentences(problems, where, rows, tokens, tags)
            usable[where] = rows
    names, numbers = _classes(problems, usable, tags, labels)
    for where, rows in usable.items():
        _check_bio(problems, where, rows, tags, {tag: names[number] for tag, number in numbers.items()})
    if duplicates == "error" and len(usable) == len(splits):
        _check_leaks(problems, splits, [tokens])
    problems.raise_all(name or ", ".join(splits))
    return _each(dataset, lambda rows: _with_classes(rows, tags, names, numbers))


def _known_duplicates(duplicates):
    if duplicates not in ("error", "ignore"):
        raise DataError(f'duplicates={duplicates!r} is not known. Pass "error" or "ignore".')


def _fits(problems, where, rows, column, kind, expected):
    """Whether a column is there, has rows and holds what it should; notes as a problem what does not fit."""
    if not _check_columns(problems, where, rows, [column]):
        return False
    if re.fullmatch(kind, _kind(rows.features[column])):
        return True
    hint = " A CSV cell cannot hold a list: save as JSON Lines." if "list" in expected else ""
    holds = f'column "{column}" holds {_kind(rows.features[column])}, not {expected}'
    problems.add(where, f"{holds}. Pass the name of the right column.{hint}")
    return False


def _check_texts(problems, where, rows, column):
    for row, (content,) in _numbered(rows, column):
        if content is None or not content.strip():
            what = "missing (null)" if content is None else "empty"
            problems.add(where, f'the text in column "{column}" is {what}. Fill it in, or drop the row.', row)


def _check_sentences(problems, where, rows, tokens, tags):
    for row, (words, word_tags) in _numbered(rows, tokens, tags):
        if not words:
            problems.add(where, "the sentence has no words. Drop the row.", row)
        elif not all((word or "").strip() for word in words):
            problems.add(where, "a word is empty or null. Drop the word and its tag.", row)
        if len(words or []) != len(word_tags or []):
            problems.add(where, f"{tokens} and {tags} differ in length. Give each word one tag.", row)


def _check_bio(problems, where, rows, tags, names):
    """I-X has to follow B-X or I-X of the same sentence."""
    for row, labels in _labels(rows, tags):
        sentence = [names.get(label, label) for label in labels]
        for before, tag in zip([None, *sentence], sentence, strict=False):
            if tag and tag.startswith("I-") and before not in (tag, "B" + tag[1:]):
                place = f'follows "{before}"' if before else "starts a sentence"
                cure = "I-X has to follow B-X or I-X: make it B- there."
                problems.add(where, f'tag "{tag}" {place}. {cure}', row)


def _check_leaks(problems, splits, columns):
    """Notes the rows of other splits whose text is in the training split (the first) too."""
    train, *others = splits
    trained = _hashes(splits[train], columns)
    for where in others:
        hashes = _hashes(splits[where], columns)
        leaked = np.flatnonzero(np.isin(hashes, trained) & (hashes != 0))
        if len(leaked):
            twin = int(np.argmax(trained == hashes[leaked[0]])) + 1
            message = f"the same text is in {train} (the first is row {twin} there), so a score would be too good."
            cure = 'Drop it with data.without_overlaps, or pass duplicates="ignore".'
        for i in leaked:
            problems.add(where, f"{message} {cure}", int(i) + 1)


def _classes(problems, splits, label, labels):
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
    names = keys = names or _in_order(trained)
    if trained and all(map(_is_number, trained)) and not any(map(_is_number, names)):
        keys = [str(number) for number in range(len(names))]  # words for labels that the data has as 0, 1, 2
    for where, rows in splits.items():
        slips = {} if not source else _odd_tags(counts[where]) if _is_list(feature) else _odd_labels(counts[where])
        for value in counts[where].keys() - {*keys, *slips, None}:
            closest = _closest(value, keys, "closest")
            what = f"{label} {_short(value)} is not one of {_names(keys)}{source}{closest}"
            slips[value] = f"{what}. Correct it, or pass labels=[...]."
        if slips or None in counts[where]:
            _note_slips(problems, where, rows, label, slips)
    if len(trained) == 1 and not _is_list(feature):
        problems.add(first, f"every {label} is {_short(trained[0])}. A classifier needs two classes.")
    return names, {key: number for number, key in enumerate(keys)}


def _note_slips(problems, where, rows, label, slips):
    """Notes the rows of missing labels and of the first few of `slips`, {label: what is wrong with it}."""
    what = "a tag" if _is_list(rows.features[label]) else f"the {label}"
    shown = dict(itertools.islice(slips.items(), SHOWN)) | {None: f"{what} is missing. Fill it in, or drop the row."}
    for row, values in _labels(rows, label):
        for value in dict.fromkeys(values):
            if value in shown:
                problems.add(where, shown[value], row)
    if len(slips) > SHOWN:
        problems.add(where, f"{len(slips) - SHOWN} more values of {label} are wrong too.")


def _odd_labels(counts):
    """{label: what is wrong with it}, for what looks like a slip where nobody said which labels there are."""
    slips, spelled = {}, {}
    numbers = [value for value in counts if value is not None and _is_number(value)]
    for value in numbers:
        if not float(value).is_integer():
            slips[value] = f"label {_short(value)} has a fraction: classes are text or whole numbers. Round it."
    for value in sorted(counts.keys() - {None, *numbers}, key=lambda value: -counts[value]):
        usual = spelled.setdefault(" ".join(value.casefold().split()), value)
        if usual != value:
            what = f"label {_short(value)} differs from {_short(usual)} in case or spaces only"
            slips[value] = f"{what}. Write it one way."
    return slips


def _odd_tags(counts):
    cure = "Use O, B-X and I-X, or pass labels=[...]."
    odd = [tag for tag in counts if tag is not None and not re.fullmatch(r"O|[BI]-\S+", tag)]
    return {tag: f"tag {_short(tag)} is not a BIO tag. {cure}" for tag in odd}


def _in_order(values):
    if values and all(map(_is_number, values)):
        return sorted(values, key=float)
    return sorted(values, key=lambda value: (value != "O", value))


def _with_classes(rows, label, names, numbers):
    """The same rows with the numbers of classes for labels."""
    feature = rows.features[label]
    if _class_names(feature) == names:
        return rows
    classes = ClassLabel(names=names)
    features = Features(rows.features | {label: List(classes) if _is_list(feature) else classes})
    as_texts, type_ = _label_reader(feature), features.arrow_schema.field(label).type

    def encode(batch):
        coded = [[numbers[text] for text in as_texts(value)] for value in batch[label].to_pylist()]
        coded = coded if _is_list(feature) else [number for (number,) in coded]
        return batch.set_column(batch.column_names.index(label), label, pa.array(coded, type_))

    return _map(rows.with_format("arrow"), encode, features=features)


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
        classes = dataset.with_format("numpy").select_columns(label)[:][label][first]
    part_of_text, problems, random = np.zeros(len(first), dtype=int), Problems(), np.random.default_rng(seed)
    for number in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == number))
        if len(members) <= len(shares):
            what = f"class {_short(feature.int2str(int(number)))}" if _class_names(feature) else "the data set"
            texts = f"{len(members)} different text{'' if len(members) == 1 else 's'}"
            needs = f"{len(shares) + 1} splits need one each. Add rows, merge it with another class, or drop it."
            problems.add(_file_name(dataset), f"{what} has {texts}, and {needs}")
        for part, share in enumerate(shares.values(), 1):
            free = members[part_of_text[members] == 0]
            part_of_text[free[: max(1, min(round(share * len(members)), len(free) - 1))]] = part
    problems.raise_all()
    parts = part_of_text[group]
    return DatasetDict(
        {name: dataset.select(np.flatnonzero(parts == part)) for part, name in enumerate(["train", *shares])}
    )


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
            raise DataError(
                f'{where}: column "{label}" has more than {MOST_CLASSES:,} different values. Is it the label?'
            )
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
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


# ---- Conversations -----------------------------------------------------------------------------------


def to_messages(dataset, *, prompt=None, answer=None, system=None):
    """Turns rows into conversations: one column `messages`, a list of {"role", "content"} that ends with an answer.

    Three shapes of data are known: a column `messages` (checked, and left as it is), the columns `instruction`,
    `output` and, where there is one, `input` (it may be empty, and goes on a line below the instruction), and any
    others that you name: `answer` is a column, `prompt` a column or a format string such as "{passage} {question}".
    `system` is put in front of every conversation. Works on a dict of splits too.

    Raises `DataError` with all problems, the first five rows of each.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"passage": ["The lamp is red."], "question": ["Which colour?"], "reply": ["Red"]})
    >>> to_messages(rows, prompt="{passage} {question}", answer="reply")["messages"][0][0]["content"]
    'The lamp is red. Which colour?'
    >>> to_messages(rows, prompt="question", answer="replies")
    Traceback (most recent call last):
    helpers.data.DataError: the data: has no column "replies", it has passage, question, reply (closest: reply). \
Rename a column to it, or pass the name of yours.

    Taught in notebooks/02_generation.ipynb, "From a row to tokens".
    """
    if (prompt is None) != (answer is None):
        raise DataError('prompt= and answer= belong together, such as prompt="question", answer="reply". Pass both.')
    splits, problems = _splits(dataset), Problems()
    for where, rows in splits.items():
        _check_conversations(problems, where, rows, prompt, answer, system)
    problems.raise_all(", ".join(splits))
    return _each(dataset, lambda rows: _conversations(rows, prompt, answer, system))


def _check_conversations(problems, where, rows, prompt, answer, system):
    columns = rows.column_names
    if prompt is not None:
        _check_pairs(problems, where, rows, prompt, answer)
    elif "messages" in columns:
        _check_turns(problems, where, rows, system)
    elif "instruction" in columns and "output" in columns:
        _check_pairs(problems, where, rows, "instruction", "output")
        if "input" in columns:
            _fits(problems, where, rows, "input", TEXT, "text")
    else:
        problems.add(
            where,
            f'has no column "messages", nor "instruction" and "output", it has {_names(columns)}. Name your own in '
            'data.to_messages, such as prompt="{passage} {question}", answer="reply".',
        )


def _check_pairs(problems, where, rows, prompt, answer):
    """Notes what is wrong with the texts of a prompt (or source) and an answer (or target)."""
    fields = _fields(prompt)
    if answer in fields:
        cure = f"Take it out of {_short(prompt)}."
        problems.add(where, f'column "{answer}" is the answer, and in the prompt too. {cure}')
        return
    for column in [*fields, answer]:
        if _fits(problems, where, rows, column, TEXT, "text"):
            _check_texts(problems, where, rows, column)


def _check_turns(problems, where, rows, system):
    feature = rows.features["messages"]
    parts = feature.feature if _is_list(feature) else None
    if not isinstance(parts, dict) or not all(re.fullmatch(TEXT, _kind(parts.get(p))) for p in ("role", "content")):
        what = 'column "messages" holds no lists of {"role": "user", "content": "..."}'
        problems.add(where, f"{what}. Make them such lists, or name other columns: prompt=, answer=.")
    elif _fits(problems, where, rows, "messages", ".*", "messages"):
        for row, (messages,) in _numbered(rows, "messages"):
            if message := _turn_problem(messages, system):
                problems.add(where, f"{message}.", row)


def _turn_problem(messages, system):
    """What is wrong with one conversation, or None."""
    if not messages or None in messages:
        return "there are no messages, or one is null. Drop the row"
    roles = [message["role"] for message in messages]
    unknown = next((str(role) for role in roles if role not in ROLES), None)
    if unknown is not None:
        return f"role {_short(unknown)} is not one of {_names(ROLES)}{_closest(unknown, ROLES, 'closest')}. Rename it"
    empty = next((message["role"] for message in messages if not (message["content"] or "").strip()), None)
    if empty:
        return f"a message of the {empty} is empty or null. Fill it in, or drop the row"
    if system and roles[0] == "system":
        return "there is a system message already. Leave system= out"
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * max(1, len(turns) // 2):
        return (
            "user and assistant do not take turns, the user first and an assistant's answer last, at most with a "
            "system message in front. Join messages of one role that follow each other, add the answer, or drop the row"
        )
    return None


def _conversations(rows, prompt, answer, system):
    if prompt is None and not system and rows.features.get("messages") == MESSAGES["messages"]:
        return rows.select_columns("messages")  # nothing to write
    first = [{"role": "system", "content": system}] if system else []
    own = prompt is not None
    shape = ("messages",) if "messages" in rows.column_names else ("instruction", "input", "output")
    columns = [*_fields(prompt), answer] if own else [column for column in shape if column in rows.column_names]

    def turns(row):
        if columns == ["messages"]:
            return [{part: turn[part] for part in ("role", "content")} for turn in row["messages"]]
        question = _filled(prompt, row) if own else "\n".join(filter(str.strip, [row[c] or "" for c in columns[:-1]]))
        return [{"role": "user", "content": question}, {"role": "assistant", "content": row[columns[-1]]}]

    def converse(batch):
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*(batch[c] for c in columns), strict=True))
        return {"messages": [first + turns(row) for row in rows]}

    return _map(rows.select_columns(columns), converse, remove_columns=columns, features=MESSAGES)


def _fields(prompt):
    """The columns that a prompt names: itself, or those of a format string."""
    if "{" not in prompt:
        return [prompt]
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
        result = rows.map(
            function, batched=True, cache_file_name=_temporary_file(), load_from_cache_file=False, **options
        )
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
        problems.add(
            where, f'has no column "{column}", it has {has}. Rename a column to it, or pass the name of yours.'
        )
    if columns and rows.num_rows == 0:
        problems.add(where, "has no rows. Add some, or leave this split out.")
    return not missing and rows.num_rows > 0


def _numbered(rows, *columns):
    """Yields the number of each row, from 1, and its values in these columns; a piece at a time is in memory."""
    pieces = rows.with_format("arrow").select_columns(list(columns)).iter(BATCH)
    values = (zip(*(piece[column].to_pylist() for column in columns), strict=True) for piece in pieces)
    return enumerate(itertools.chain.from_iterable(values), 1)


def _labels(rows, label):
    """Yields the number of each row and the list of its labels as text: one, or the tags of its words."""
    as_texts = _label_reader(rows.features[label])
    return ((row, as_texts(value)) for row, (value,) in _numbered(rows, label))


def _label_reader(feature):
    """The function that makes a list of texts of a label or of a list of tags; None stands for one that is missing."""
    names, many = _class_names(feature), _is_list(feature)

    @functools.lru_cache(MOST_CLASSES)
    def as_text(value):
        if names is not None:
            return names[value] if value is not None and 0 <= value < len(names) else None
        if isinstance(value, float):  # pandas makes floats of whole numbers where some are missing
            value = None if not math.isfinite(value) else int(value) if value.is_integer() else value
        if value is None or not str(value).strip():
            return None
        return str(value).lower() if isinstance(value, bool) else str(value)

    return lambda value: [as_text(item) for item in value or ()] if many else [as_text(value)]


def _label_counts(rows, label):
    """How often each label is there; stops where there are too many different ones for labels."""
    counts = Counter()
    for _, values in _labels(rows, label):
        counts.update(values)
        if len(counts) > MOST_CLASSES:
            break
    return counts


def _hashes(rows, columns, nearly=False):
    """One 64-bit hash for the text of each row, 0 where there is none."""
    for column in columns:
        if not re.fullmatch(f"{TEXT}|{WORDS}", _kind(rows.features[column])):
            kind = _kind(rows.features[column])
            where = _file_name(rows)
            raise DataError(f'{where}: column "{column}" holds {kind}, not text. Pass the name of the right column.')
    hashes, texts = [], (values for _, values in _numbered(rows, *columns))
    while batch := list(itertools.islice(texts, BATCH)):
        plain = [pa.array(map(_joined, values), pa.large_string()) for values in zip(*batch, strict=True)]
        if nearly:
            plain = [_without_punctuation(values) for values in plain]
        joined = pc.binary_join_element_wise(*plain, pa.scalar("\x1f", pa.large_string()))
        blank = pc.equal(pc.replace_substring_regex(joined, r"[\s\x1f]+", ""), "")
        hashed = pd.util.hash_array(joined.to_numpy(zero_copy_only=False), categorize=False)
        hashes.append(np.where(np.asarray(blank), np.uint64(0), hashed))
    return np.concatenate(hashes)


def _joined(value):
    return " ".join(word or "" for word in value) if isinstance(value, list) else value or ""


def _without_punctuation(texts):
    plain = pc.replace_substring_regex(pc.utf8_lower(texts), r"[\p{P}\s]+", " ")
    plain = pc.utf8_trim_whitespace(plain)
    return pc.if_else(pc.equal(plain, ""), texts, plain)  # ":)" and ":(" are not the same text


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
