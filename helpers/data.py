"""Your own data: read it, check it, split it, look at it, tokenise it.

The order of use is the order of this file:

    train = data.check(data.read("reviews.csv"))        # one error lists everything that is wrong
    splits = data.split(train)                          # stratified, no text in two splits
    print(data.overlaps(splits), data.class_balance(splits))
    model = AutoModel...from_pretrained(MODEL, **data.label_maps(train))
    examples = data.tokenize(splits, tokenizer)         # not padded: the collator of the library does that

Everything stays on disk as memory-mapped Arrow tables (the `datasets` library), and is looked at one
piece at a time, so a file larger than memory works. Your files are only ever read: what has to be
written goes to a folder of this process under the `datasets` cache, and is removed when Python ends.

Rows count as a person counts them: the first row of data is row 1, the header is not a row, blank
lines are skipped. Whatever is wrong with the data is a `DataError`, and nothing else.
"""

import atexit
import codecs
import contextlib
import difflib
import functools
import html
import itertools
import json
import re
import shutil
import string
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

# `datasets` takes more than a second to import, so the functions that need it import it.

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
BATCH = 10_000  # rows looked at together: enough to be fast, few enough that long documents fit in memory
BLOCK = 8 << 20  # bytes of a file read together; no single row of a CSV file may be longer
SHOWN = 5  # rows named in an error
MOST_CLASSES = 10_000  # a column with more different values than this is no label


class DataError(ValueError):
    """Something is wrong with the data: the message says what, in which rows, and what to do."""


class Table(list):
    """A list of dicts that prints as a table, here and in a notebook.

    >>> print(Table([{"class": "spam", "share": 0.25}]))
    class  share
    spam   0.250
    """

    def _cells(self):
        if not self:
            return [["(none)"]]
        rows = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in self]
        return [list(self[0]), *rows]

    def __str__(self):
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)) for row in cells)
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__

    def _repr_html_(self):
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._cells())
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


# ---- Reading ---------------------------------------------------------------------------------------


def read(source, *, split=None):
    """Reads a file, a saved folder, a Hub id or a Dataset as one memory-mapped `Dataset`.

    `source` is the path of a .csv or .tsv file with a header, a .json file with a list of objects, a
    .jsonl or .ndjson file with one object per line, a .parquet file, a folder written by
    `save_to_disk`, a `Dataset`, or "owner/name" on the Hugging Face Hub. `split` picks one split
    where there are several.

    A CSV file has no types, so all its columns come as text ("007" stays "007", and the word "None"
    stays a word); `check` turns the labels into classes. The separator is a comma or a tab by the
    file's name; where the header has no comma, a semicolon or tab in it is taken. The first row is
    taken for data, not for a header, when one of its cells is a number, repeats another cell, or is
    found again in its own column within the next 1,000 rows.

    Raises `DataError` for anything that cannot be read.

    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "tiny.csv").write_text("text,label\\nGood value,positive\\n")
    >>> read(folder / "tiny.csv")[0]
    {'text': 'Good value', 'label': 'positive'}
    >>> read(folder / "tiny.cvs")
    Traceback (most recent call last):
    helpers.data.DataError: tiny.cvs: there is no such file (closest in its folder: tiny.csv). Correct the path.

    Taught in notebooks/01_classification.ipynb, "See the data".
    """
    import datasets

    if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        return _one_split(source, "the DatasetDict", split)
    if not isinstance(source, (str, Path)):
        raise DataError(f"expected a path, a Hub id or a Dataset, found {type(source).__name__}.")
    path = Path(source).expanduser()
    if not path.exists() and path.suffix.lower() not in FORMATS and not path.parent.is_dir() and _is_hub_id(source):
        return _read_hub(str(source), split)
    if path.is_dir():
        return _read_folder(path, split)
    _check_file(path)
    if split is not None:
        raise DataError(f"{path.name}: a file is one split, so split={split!r} means nothing. Leave it out.")
    reader = {".parquet": _parquet_batches, ".csv": _csv_batches, ".tsv": _csv_batches}.get(path.suffix.lower())
    dataset = _to_dataset((reader or _json_batches)(path), path.name)
    _file_names[dataset._fingerprint] = path.name
    return dataset


# So that `check` can name the file. The fingerprint changes with every select, shuffle or filter, and
# with it goes the name: a row number that no longer is the file's must not be given as the file's.
_file_names = {}


def _is_hub_id(source):
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)) is not None


def _one_split(found, name, split):
    import datasets

    if isinstance(found, datasets.Dataset):
        if split is not None:
            raise DataError(f"{name}: is one split already, so split={split!r} means nothing. Leave it out.")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        asked = f"has no split {split!r}" if split is not None else "has several splits"
        raise DataError(f"{name}: {asked}. Pass split= one of {_names(found)}.")
    return found[split]


def _read_hub(name, split):
    import datasets

    try:
        with _quiet():
            found = datasets.load_dataset(name, split=split)
    except Exception as error:  # the Hub's libraries raise a dozen unrelated types here
        why = f"{type(error).__name__}: {_first_line(error)}"
        raise DataError(
            f"{name}: could not be loaded from the Hugging Face Hub ({why}). Check the name on huggingface.co, the "
            "network, HF_HUB_OFFLINE and, for private data, `hf auth login`; or download a file and pass its path."
        ) from error
    return found if isinstance(found, datasets.Dataset) else _one_split(found, name, split)


def _read_folder(path, split):
    import datasets

    try:
        return _one_split(datasets.load_from_disk(str(path)), path.name, split)
    except DataError:
        raise
    except Exception as error:
        files = sorted(file.name for file in path.iterdir() if file.suffix.lower() in FORMATS)
        hint = f"It holds {_names(files)}: read them one by one." if files else "Pass a file."
        raise DataError(f"{path.name}: is a folder, but not one written by save_to_disk. {hint}") from error


def _check_file(path):
    """Raises for what can be said of a file before it is read: missing, empty, unknown, not UTF-8."""
    if not path.exists():
        near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = _closest(path.name, near, "closest in its folder: ") if near else ""
        where = "" if path.parent.is_dir() else f", and no folder {path.parent}"
        hub = ", or pass a Hub id as owner/name" if not path.suffix else ""
        raise DataError(f"{path.name}: there is no such file{where}{near}. Correct the path{hub}.")
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path.name}: unknown format {path.suffix!r}. Use one of {', '.join(FORMATS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path.name}: the file is empty. Save it again from where it came.")
    if path.suffix.lower() != ".parquet":
        _check_utf8(path)


def _check_utf8(path):
    decoder, offset, line = codecs.getincrementaldecoder("utf-8")(), 0, 1
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])  # bytes of a character cut in two by the block's end
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                position = offset - pending + error.start
                line += error.object[: error.start].count(b"\n")
                guess = "utf-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") and position < 2 else "cp1252"
                raise DataError(
                    f"{path.name}, line {line}: the byte at offset {position} (0x{error.object[error.start]:02x}) is "
                    f"not UTF-8. If the file is {guess}, write a converted copy: `Path('utf8{path.suffix}').write_text("
                    f"Path({path.name!r}).read_text('{guess}'), 'utf-8')`, and read that."
                ) from None
            if not block:
                return
            offset, line = offset + len(block), line + block.count(b"\n")


def _csv_batches(path):
    """Yields the rows of a CSV file as Arrow batches of text columns."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    if separator not in first:
        separator = max(",;\t", key=first.count) if any(mark in first for mark in ",;\t") else separator
    ragged = []

    def note(row):
        ragged.append(row if len(ragged) < SHOWN else None)
        return "skip"

    def open_csv(types):
        return pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=BLOCK),
            parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=note),
            convert_options=pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )

    try:
        header = open_csv({}).schema.names
        ragged.clear()
        # As pandas does: a column without a name is most often an index that was saved with the rest.
        names = [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(header)]
        for i, batch in enumerate(open_csv(dict.fromkeys(header, pa.string()))):
            if i == 0:
                _check_header(path.name, names, batch)
            yield pa.record_batch(batch.columns, names=names)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise DataError(f"{path.name}: has no rows below its first line. Add rows.") from None
        raise DataError(
            f"{path.name}: cannot be read as CSV ({_first_line(error)}). Look for a quotation mark that is never "
            f"closed, or a row longer than {BLOCK >> 20} MiB."
        ) from None
    if ragged:
        problems = []
        for row in ragged[:SHOWN]:
            place = f"{path.name}, row {row.number - 1}" if row.number else path.name
            problems.append(
                f"{place}: has {_count(row.actual_columns, 'cell')} where the header has {row.expected_columns}: "
                f"{_short(row.text)}. Put quotation marks around a cell with a {separator!r} in it, and close each one."
            )
        more = [f"{path.name}: {len(ragged) - SHOWN} more rows like these."] if len(ragged) > SHOWN else []
        _raise(problems + more, path.name)


def _check_header(file, names, batch):
    for i, name in enumerate(names):
        again = pc.index(batch.column(i)[:1000], name).as_py() if batch.num_rows else -1
        if _is_number(name):
            why = f"{_short(name)} is a number"
        elif names.count(name) > 1:
            why = f"{_short(name)} is there twice"
        elif again >= 0:
            why = f"{_short(name)} is found again in the same column in row {again + 1}"
        else:
            continue
        raise DataError(
            f"{file}: the first line looks like data, not like column names: {why}. "
            "Add a first line such as text,label, or rename that column."
        )


def _parquet_batches(path):
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                # pandas saves categories as dictionaries, which `datasets` cannot map from disk.
                plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
                schema = pa.schema(
                    [(name, c.type) for name, c in zip(batch.schema.names, plain, strict=True)],
                    metadata=batch.schema.metadata,
                )
                yield pa.record_batch(plain, schema=schema)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name}: cannot be read as Parquet ({_first_line(error)}). Save it again.") from None


def _json_batches(path):
    """Yields the objects of a JSON or JSON Lines file as Arrow batches that all have one schema."""
    objects = _json_list if path.suffix.lower() == ".json" else _json_lines

    def columns():
        found = enumerate(objects(path), 1)
        for start in itertools.count(1, BATCH):
            rows = [_object(path.name, row, value) for row, value in itertools.islice(found, BATCH)]
            if not rows:
                return
            names = dict.fromkeys(itertools.chain.from_iterable(rows))
            yield start, {name: [row.get(name) for row in rows] for name in names}

    # Twice through the file: a type can only be known once the last row is seen.
    types = {}
    for start, batch in columns():
        for name, values in batch.items():
            before = types.get(name, pa.null())
            try:
                types[name] = _json_type(values, before)
            except UNFIT as error:
                raise _mixed(path.name, name, values, start, before, _first_line(error)) from None
    schema = pa.schema(list(types.items()))
    for _, batch in columns():
        size = len(next(iter(batch.values()), ()))
        yield pa.record_batch([pa.array(batch.get(n, [None] * size), t) for n, t in types.items()], schema=schema)


def _json_type(values, before):
    """The Arrow type that holds these values and those before them; raises where there is none."""
    both = [pa.schema([("x", before)]), pa.schema([("x", pa.array(values).type)])]
    merged = pa.unify_schemas(both, promote_options="permissive").field("x").type
    pa.array(values, merged)
    return merged


UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)
KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


def _mixed(file, column, values, start, before, why):
    """The error for values that one column cannot hold: which are not like the others?"""
    kinds = [KINDS.get(type(value)) for value in values]
    usual, _ = Counter(filter(None, kinds)).most_common(1)[0]
    odd = [i for i, kind in enumerate(kinds) if kind not in (None, usual)]
    if odd:
        what = f"{kinds[odd[0]]} ({_short(values[odd[0]])}) where other rows hold {usual}"
        return DataError(
            f"{_rows(file, [start + i for i in odd[:SHOWN]], len(odd))}: column {_short(column)} holds {what}. "
            "Numbers and text cannot be mixed: make them one kind."
        )
    n_fit = 0
    with contextlib.suppress(*UNFIT):
        for value in values:
            before = _json_type([value], before)
            n_fit += 1
    return DataError(
        f"{file}, row {start + n_fit}: column {_short(column)} does not fit the rows before it ({why}). Correct it."
    )


def _object(file, row, value):
    if not isinstance(value, dict):
        raise DataError(
            f"{file}, row {row}: holds {KINDS.get(type(value), 'null')}, not an object. "
            'Each row has to be an object such as {"text": "...", "label": "..."}.'
        )
    return value


def _json_lines(path):
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    raise _broken(path, number, f"{error.msg} at column {error.colno}") from None
                except (RecursionError, ValueError) as error:
                    raise _broken(path, number, _first_line(error)) from None
                if number == 1 and isinstance(value, list):
                    raise DataError(f"{path.name}: is one JSON list, not one object per line. Rename it to .json.")
                yield value


END = "the end of the file"


def _json_list(path):
    """Yields the items of a JSON list one by one, without holding the whole list in memory."""
    decoder, line, expected = json.JSONDecoder(), 1, "["
    with path.open(encoding="utf-8-sig") as file:
        text, at = file.read(BLOCK), 0
        while True:
            at = re.compile(r"[ \t\r\n]*").match(text, at).end()
            if at == len(text):
                line += text.count("\n")
                text, at = file.read(BLOCK), 0
                if text:
                    continue
                if expected == END:
                    return
                raise _broken(path, line, f"the file ends where {expected} is expected")
            mark = text[at]
            if mark == "[" and expected == "[":
                at, expected = at + 1, "an object or ]"
            elif expected == "[":
                lines = " If it is one object per line, rename it to .jsonl." if mark == "{" else ""
                raise DataError(f'{path.name}: is not a list of objects ([{{"text": ...}}, ...]).{lines}')
            elif mark == "]" and expected in ("an object or ]", ", or ]"):
                at, expected = at + 1, END
            elif expected == ", or ]" and mark == ",":
                at, expected = at + 1, "an object"
            elif expected in (", or ]", END):
                raise _broken(path, line + text.count("\n", 0, at), f"{_short(text[at : at + 20])} is not {expected}")
            else:
                try:
                    value, at = decoder.raw_decode(text, at)
                except (RecursionError, ValueError) as error:
                    position = getattr(error, "pos", at)
                    cut = position > len(text) - 12 or str(error).startswith("Unterminated")
                    more = file.read(max(BLOCK, len(text))) if cut else ""
                    if not more:
                        why = getattr(error, "msg", _first_line(error))
                        raise _broken(path, line + text.count("\n", 0, position), why) from None
                    line += text.count("\n", 0, at)
                    text, at = text[at:] + more, 0
                    continue
                expected = ", or ]"
                yield value


def _broken(path, line, why):
    return DataError(f"{path.name}, line {line}: broken JSON: {why}. Correct that line, or write the file again.")


def _to_dataset(batches, name):
    """Writes Arrow batches to a file of this process and maps it into memory."""
    import datasets

    batches, file = iter(batches), _temporary_file()
    try:
        first = next(batches, None)
        if first is None or first.num_columns == 0:
            raise DataError(f"{name}: holds no rows. Add some, or check that it was saved whole.")
        n_rows = 0
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            for batch in itertools.chain([first], batches):
                writer.write_batch(batch)
                n_rows += batch.num_rows
        if n_rows == 0:
            raise DataError(f"{name}: holds no rows. Add some, or check that it was saved whole.")
        return datasets.Dataset.from_file(str(file))
    except (pa.ArrowException, ValueError, TypeError) as error:
        file.unlink(missing_ok=True)
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: has a column that `datasets` cannot hold ({_first_line(error)}).") from None


@functools.cache
def _temporary_folder():
    # Not the system's temporary folder: that is often memory, and these files may be larger than it.
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="helpers-", dir=cache)
    except OSError:
        folder = tempfile.mkdtemp(prefix="helpers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


_numbers = itertools.count()


def _temporary_file():
    return _temporary_folder() / f"{next(_numbers)}.arrow"


# ---- Checking --------------------------------------------------------------------------------------


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

    Taught in notebooks/01_classification.ipynb, "See the data".
    """
    splits, texts, problems, labelled = _splits(dataset, name), _columns(text), [], {}
    for where, rows in splits.items():
        problems += _missing(where, rows, [*texts, label])
        for column in texts:
            if column in rows.column_names:
                problems += _text_problems(where, rows, column)
        if label in rows.column_names:
            if _is_text(rows.features[label], "string", "int", "uint", "float", "bool", "null"):
                labelled[where] = rows
            else:
                problems.append(_wrong_type(where, rows, label, "text or whole numbers"))
    keys, classes, found = _classes(labelled, label, labels)
    problems += found
    if duplicates == "error":
        problems += _leaks(splits, texts)
    _raise(problems, name or ", ".join(splits))
    return _each(dataset, lambda rows: _encode(rows, label, keys, classes))


def check_tokens(dataset, *, tokens="tokens", tags="tags", labels=None, name=None, duplicates="error"):
    """Checks sentences that are lists of words with a BIO tag for each, and makes the tags classes.

    As `check`, with these problems: a sentence without words, an empty word, as many tags as words, a
    tag that is not O, B-X or I-X (or not in `labels`), and I-X that does not follow B-X or I-X.
    Returns the same with the tags as lists of `ClassLabel`: O first, the others sorted.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"tokens": [["Ada", "slept"]], "tags": [["B-PER", "O"]]})
    >>> check_tokens(rows).features["tags"].feature.names
    ['O', 'B-PER']

    Taught in notebooks/01_classification.ipynb, "The same idea for each token".
    """
    splits, problems, usable = _splits(dataset, name), [], {}
    for where, rows in splits.items():
        found = _missing(where, rows, [tokens, tags]) or _list_problems(where, rows, tokens, tags)
        problems += found
        if not found:
            usable[where] = rows
    keys, classes, found = _classes(usable, tags, labels)
    problems += found
    for where, rows in usable.items():
        problems += _bio_problems(where, rows, tags, dict(zip(keys, classes, strict=True)))
    if duplicates == "error":
        problems += _leaks(usable, [tokens])
    _raise(problems, name or ", ".join(splits))
    return _each(dataset, lambda rows: _encode(rows, tags, keys, classes))


def _text_problems(where, rows, column):
    if not _is_text(rows.features[column], "string", "null"):
        return [_wrong_type(where, rows, column, "text")]
    tests = {
        "missing (null)": lambda batch: pc.is_null(batch[column]),
        "empty": lambda batch: pc.equal(pc.utf8_trim_whitespace(batch[column].cast(pa.large_string())), ""),
    }
    found = _scan(rows, [column], tests)
    return [
        f'{_rows(where, *where_found)}: the text in column "{column}" is {what}. Fill it in, or drop the row.'
        for what, where_found in found.items()
    ]


def _list_problems(where, rows, tokens, tags):
    for column, inner in ((tokens, ("string",)), (tags, ("string", "int"))):
        feature = rows.features[column]
        if not _is_list(feature) or not _is_text(_inner(feature), *inner):
            hint = " A CSV cell cannot hold a list: save as JSON Lines." if _is_text(feature, "string") else ""
            return [_wrong_type(where, rows, column, "lists of text") + hint]

    def lengths(batch, column):
        return pc.fill_null(pc.list_value_length(batch[column]), 0)

    def blank(batch):
        words, parents = _flat(batch[tokens])
        words = pc.fill_null(words.cast(pa.large_string()), "")
        return _mask(pc.equal(pc.utf8_trim_whitespace(words), ""), parents, batch.num_rows)

    tests = {
        "the sentence has no words. Drop the row": lambda batch: pc.equal(lengths(batch, tokens), 0),
        "a word is empty or null. Drop the word and its tag": blank,
        f"{tokens} and {tags} differ in length. Give each word one tag": lambda batch: pc.not_equal(
            lengths(batch, tokens), lengths(batch, tags)
        ),
    }
    found = _scan(rows, [tokens, tags], tests)
    return [f"{_rows(where, *found[what])}: {what}." for what in found]


def _bio_problems(where, rows, tags, names):
    """I-X has to follow B-X or I-X of the same sentence."""
    feature, found = rows.features[tags], {}

    def collect(batch):
        strings, parents = _strings(batch[tags], feature)
        coded = _whole(pc.fill_null(strings, "")).dictionary_encode()
        values, codes = [names.get(v, v) for v in coded.dictionary.to_pylist()], np.asarray(coded.indices)
        inside = np.array([value.startswith("I-") for value in values], dtype=bool)
        kind = np.unique([value[2:] or value for value in values], return_inverse=True)[1]
        same = np.zeros(len(codes), dtype=bool)
        same[1:] = (kind[codes[1:]] == kind[codes[:-1]]) & (parents[1:] == parents[:-1])
        bad = inside[codes] & ~same if len(codes) else same
        for i in np.flatnonzero(bad)[:SHOWN]:
            before = f'follows "{values[codes[i - 1]]}"' if i and parents[i - 1] == parents[i] else "starts a sentence"
            found.setdefault("example", f'tag "{values[codes[i]]}" {before}')
        return _mask(bad, parents, batch.num_rows)

    place = _scan(rows, [tags], {"": collect}).get("")
    if not place:
        return []
    return [f"{_rows(where, *place)}: {found['example']}. I-X has to follow B-X or I-X: make it B- there."]


def _classes(splits, label, labels):
    """How labels are looked up (keys), what the classes are called, and what is wrong with the labels."""
    problems, counts = [], {}
    for where, rows in splits.items():
        counts[where] = _label_counts(rows, label)
        if len(counts[where]) > MOST_CLASSES:
            problem = f'{where}: column "{label}" has more than {MOST_CLASSES:,} different values. Is it the label?'
            return [], [], [*problems, problem]
        if counts[where].pop(None, 0):
            missing = _rows_of(where, rows, label, [None])
            what = "a tag" if _is_list(rows.features[label]) else f"the {label}"
            problems.append(f"{missing}: {what} is missing. Fill it in, or drop the row.")
    trained, first = next(iter(counts.values()), {}), next(iter(splits), None)
    if first is None:
        return [], [], problems
    feature = splits[first].features[label]
    given = [str(value) for value in labels] if labels is not None else getattr(_inner(feature), "names", None)
    if given and len(set(given)) < len(given):
        raise DataError(f"labels={_names(given)} names one twice. Leave it out once.")
    names = keys = given or _in_order(trained)
    if given and trained and all(map(_is_number, trained)) and not any(map(_is_number, given)):
        keys = [str(number) for number in range(len(given))]  # words for labels that the data has as 0, 1, 2
    for where, rows in splits.items():
        odd = {} if given else _odd_tags(counts[where]) if _is_list(feature) else _odd_labels(counts[where])
        known = {*keys, *itertools.chain.from_iterable(odd.values())}
        unknown = [value for value in counts[where] if value not in known]
        for value in unknown[:SHOWN]:
            near = _closest(value, keys, "closest: ")
            train = "" if given else f", the labels of {first}"
            what = f"{label} {_short(value)} is not one of {_names(keys)}{train}{near}"
            odd[f"{what}. Correct it, or pass labels=[...]."] = [value]
        problems += [f"{_rows_of(where, rows, label, values)}: {what}" for what, values in odd.items()]
        if len(unknown) > SHOWN:
            problems.append(f"{where}: {len(unknown) - SHOWN} more values of {label} are not known either.")
    if len(trained) == 1 and not _is_list(feature):
        problems.append(f"{first}: every {label} is {_short(next(iter(trained)))}. A classifier needs two classes.")
    return keys, names, problems


def _label_counts(rows, label):
    """How often each label is there, as text; stops when there are too many different ones for labels."""
    counts = Counter()
    for batch in _batches(rows, [label]):
        for item in pc.value_counts(_strings(batch[label], rows.features[label])[0]).to_pylist():
            counts[item["values"]] += item["counts"]
        if len(counts) > MOST_CLASSES:
            break
    return counts


def _odd_labels(counts):
    """Labels that look like slips when nobody said which labels there are: {what is wrong: labels}."""
    odd, numbers = {}, [value for value in counts if _is_number(value)]
    words = [value for value in counts if not _is_number(value)]
    fractions = [value for value in numbers if not float(value).is_integer()]
    if numbers and words:
        rare, usual = sorted([numbers, words], key=lambda values: sum(counts[value] for value in values))
        what = f"label {_short(rare[0])}, where most are like {_short(usual[0])}: numbers and text are mixed."
        odd[f"{what} Make them one kind, or pass labels=[...]."] = rare
    elif fractions:
        odd[f"label {_short(fractions[0])} has a fraction: classes are text or whole numbers. Round it."] = fractions
    spelled = {}
    for value in sorted(counts, key=lambda value: -counts[value]):
        usual = spelled.setdefault(" ".join(value.casefold().split()), value)
        if usual != value:
            what = f"label {_short(value)} differs from {_short(usual)} in case or spaces only. Write it one way."
            odd.setdefault(what, []).append(value)
    return odd


def _odd_tags(counts):
    bad = [tag for tag in counts if not re.fullmatch(r"O|[BI]-\S+", tag)]
    if not bad:
        return {}
    return {f"tag {_short(bad[0])} is not a BIO tag. Use O, B-X and I-X, or pass labels=[...].": bad}


def _in_order(values):
    if values and all(map(_is_number, values)):
        return sorted(values, key=float)
    return sorted(values, key=lambda value: (value != "O", value))


def _leaks(splits, columns):
    """Rows of other splits whose text is in the training split (the first) too."""
    usable = {
        where: rows
        for where, rows in splits.items()
        if all(c in rows.column_names and _is_text(_inner(rows.features[c]), "string") for c in columns)
    }
    if len(usable) < 2 or next(iter(usable)) != next(iter(splits)):
        return []
    (train, trained), *others = ((where, _keys(rows, columns)) for where, rows in usable.items())
    problems = []
    for where, keys in others:
        found = np.flatnonzero(np.isin(keys, trained) & (keys != 0))
        if len(found):
            twin = int(np.flatnonzero(trained == keys[found[0]])[0]) + 1
            problems.append(
                f"{_rows(where, found[:SHOWN] + 1, len(found))}: the same text is in {train} (row {twin} there), so a "
                'score would be too good. Drop it with data.without_overlaps, or pass duplicates="ignore".'
            )
    return problems


def _encode(rows, label, keys, names):
    """The same rows with numbers for labels; only that column is written, the others stay where they are."""
    import datasets

    feature = rows.features[label]
    if getattr(_inner(feature), "names", None) == names:
        return rows
    codes = datasets.ClassLabel(names=names)
    new = datasets.Features({label: datasets.List(codes) if _is_list(feature) else codes})

    def batches():
        for batch in _batches(rows, [label]):
            strings, parents = _strings(batch[label], feature)
            column = pc.index_in(strings, value_set=pa.array(keys, pa.large_string())).cast(pa.int64())
            if parents is not None:
                ends = np.cumsum(np.bincount(parents, minlength=batch.num_rows))
                column = pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), column)
            yield pa.record_batch([column], schema=new.arrow_schema)

    with _quiet():
        if rows._indices is not None:
            rows = rows.flatten_indices(cache_file_name=str(_temporary_file()))
        rest = rows.with_format(None).remove_columns(label)
        joined = datasets.concatenate_datasets([rest, _to_dataset(batches(), label)], axis=1, split=rows.split)
    return joined.select_columns(rows.column_names)


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

    Taught in notebooks/01_classification.ipynb, "See the data".
    """
    import datasets

    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise DataError(f"validation={validation} and test={test} are shares of the rows: together less than 1.")
    _single(dataset, _columns(text))
    shares = {name: share for name, share in (("validation", validation), ("test", test)) if share}
    _, first, group = np.unique(_keys(dataset, _columns(text)), return_index=True, return_inverse=True)
    feature = dataset.features.get(label)
    stratify = isinstance(feature, datasets.ClassLabel)
    classes = _column(dataset, label)[first] if stratify else np.zeros(len(first), dtype=int)
    target, problems = np.zeros(len(first), dtype=int), []
    random = np.random.default_rng(seed)
    for number in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == number))
        if len(members) <= len(shares):
            what = f"class {_short(feature.int2str(int(number)))}" if stratify else "the data set"
            problems.append(
                f"{_name(dataset)}: {what} has {_count(len(members), 'different text')}, and {len(shares) + 1} splits "
                "need one each. Add rows, merge it with another class, or drop it."
            )
        for i, share in enumerate(shares.values(), 1):
            free = members[target[members] == 0]
            target[free[: max(1, min(round(share * len(members)), len(free) - 1))]] = i
    _raise(problems)
    where = target[group]
    return datasets.DatasetDict(
        {name: dataset.select(np.flatnonzero(where == i)) for i, name in enumerate(["train", *shares])}
    )


class Overlaps(Table):
    """What `overlaps` found: a row for each kind of duplicate and each pair of splits.

    >>> from datasets import Dataset
    >>> overlaps({name: Dataset.from_dict({"text": ["Good!"]}) for name in ("train", "test")}).leaks
    1
    """

    @property
    def leaks(self):
        """How many rows of other splits are, nearly at least, in the training split too."""
        return sum(row["rows"] for row in self if row["kind"] == "nearly" and row["also in"] == "train" != row["of"])


def overlaps(splits, *, text="text"):
    """Counts texts that are in a split twice, or in two splits, exactly and nearly.

    "Nearly" means equal after case, white space and punctuation are put aside, and includes "exactly".
    Each row counts the rows of one split that are in it earlier already, or in another split too, and
    names the first. Texts are compared by 64-bit hashes, so memory is 8 bytes a row.

    >>> from datasets import Dataset
    >>> rows = lambda *texts: Dataset.from_dict({"text": texts})
    >>> print(overlaps({"train": rows("Good!", "Bad", "Bad"), "test": rows("good", "Bad")}))
    kind     of     also in  rows  share  first
    exactly  train  train    1     0.333  3
    exactly  test   train    1     0.500  2
    nearly   train  train    1     0.333  3
    nearly   test   train    2     1.000  1, 2

    Taught in notebooks/01_classification.ipynb, "A leak, planted".
    """
    columns, found = _columns(text), Overlaps()
    splits = _splits(splits, needs=columns)
    for kind in ("exactly", "nearly"):
        keys = {where: _keys(rows, columns, nearly=kind == "nearly") for where, rows in splits.items()}
        for i, (of, own) in enumerate(keys.items()):
            again = np.ones(len(own), dtype=bool)
            again[np.unique(own, return_index=True)[1]] = False
            for other in list(keys)[: i + 1]:
                twice = (again if other == of else np.isin(own, keys[other])) & (own != 0)
                rows = np.flatnonzero(twice) + 1
                if len(rows):
                    row = {"kind": kind, "of": of, "also in": other, "rows": len(rows), "share": len(rows) / len(own)}
                    found.append(row | {"first": ", ".join(map(str, rows[:SHOWN]))})
    return found


def without_overlaps(splits, *, text="text"):
    """Drops the rows of the training split whose text is nearly the same as one of another split.

    >>> from datasets import Dataset
    >>> rows = lambda *texts: Dataset.from_dict({"text": texts})
    >>> without_overlaps({"train": rows("Good!", "Bad"), "test": rows("good")})["train"]["text"][:]
    ['Bad']
    """
    import datasets

    columns = _columns(text)
    ordered = _splits(splits, needs=columns)
    first, *others = ordered
    keys = {where: _keys(rows, columns, nearly=True) for where, rows in ordered.items()}
    held_out = np.concatenate([keys[where] for where in others]) if others else np.zeros(0, dtype=np.uint64)
    kept = np.flatnonzero(~np.isin(keys[first], held_out) | (keys[first] == 0))
    return datasets.DatasetDict(dict(splits) | {first: ordered[first].select(kept)})


def class_balance(dataset, *, label="label"):
    """Counts the rows of each class, of a `Dataset` or of each split, as a `Table`.

    >>> from datasets import Dataset
    >>> class_balance(Dataset.from_dict({"label": ["spam", "ham", "ham"]}))
    class  count  share
    ham    2      0.667
    spam   1      0.333
    """
    found = Table()
    for where, rows in _splits(dataset, needs=[label]).items():
        counts = _label_counts(rows, label)
        split_name = {"split": where} if isinstance(dataset, dict) else {}
        names = getattr(_inner(rows.features[label]), "names", None) or _in_order(counts.keys() - {None})
        for name in [*names, *({None} & counts.keys())]:
            found.append(split_name | {"class": name, "count": counts[name], "share": counts[name] / counts.total()})
    return found


def label_maps(dataset, *, label="label"):
    """The classes as a model's configuration has them; works for tags too.

    >>> from datasets import Dataset
    >>> label_maps(check(Dataset.from_dict({"text": ["Good", "Bad"], "label": ["yes", "no"]})))
    {'num_labels': 2, 'id2label': {0: 'no', 1: 'yes'}, 'label2id': {'no': 0, 'yes': 1}}
    """
    where, rows = next(iter(_splits(dataset, needs=[label]).items()))
    names = getattr(_inner(rows.features[label]), "names", None)
    if names is None:
        raise DataError(f'{where}: column "{label}" has no classes yet. Pass the data through data.check first.')
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


# ---- Tokenising --------------------------------------------------------------------------------------


def tokenize(dataset, tokenizer, *, text="text", label="label", max_length=None):
    """Turns texts into token ids, with `labels` and `length`, and no other columns.

    Nothing is padded: `DataCollatorWithPadding` pads each batch to its own longest example, which costs
    far less than padding all of them to `max_length` (see `lengths`). Examples longer than `max_length`
    (or than the model takes) are cut. `label=None` is for text without labels. Works on a dict of
    splits too.

    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> tokenize(Dataset.from_dict({"text": ["good", "good value"], "label": [0, 1]}), tokenizer)["length"][:]
    [3, 4]

    Taught in notebooks/01_classification.ipynb, "What it has to beat".
    """
    columns, limit = _columns(text), _limit(tokenizer, max_length)

    def encode(batch):
        found = tokenizer(*[batch[c] for c in columns], truncation=limit is not None, max_length=limit)
        return {**found, "length": [len(ids) for ids in found["input_ids"]]}

    return _each(dataset, lambda rows: _map(rows, encode, columns, label))


def align_labels(dataset, tokenizer, *, tokens="tokens", tags="tags", max_length=None):
    """Turns words into token ids, with each word's tag on its first token and -100 on all others.

    -100 is the label that the loss leaves out, so a word counts once however many tokens it has.

    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> rows = check_tokens(Dataset.from_dict({"tokens": [["Hello", "Ann"]], "tags": [["O", "B-PER"]]}))
    >>> align_labels(rows, tokenizer)["labels"][0]
    [-100, 0, 1, -100]

    Taught in notebooks/01_classification.ipynb, "The same idea for each token".
    """
    limit = _limit(tokenizer, max_length)
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} cannot say which word a token is of. Use a fast tokenizer.")

    def encode(batch):
        found = tokenizer(batch[tokens], is_split_into_words=True, truncation=limit is not None, max_length=limit)
        labels = []
        for i, word_tags in enumerate(batch["labels"]):
            words = found.word_ids(i)
            starts = [
                word is not None and word != before for word, before in zip(words, [None, *words[:-1]], strict=True)
            ]
            labels.append([word_tags[word] if start else -100 for word, start in zip(words, starts, strict=True)])
        return {**found, "labels": labels, "length": [len(ids) for ids in found["input_ids"]]}

    return _each(dataset, lambda rows: _map(rows, encode, [tokens], tags))


def _map(rows, encode, columns, label=None):
    _raise(_missing(_name(rows), rows, [*columns, *([label] if label else [])]))
    wanted = rows.with_format(None).select_columns([*columns, *([label] if label else [])])
    if label:
        if _is_text(_inner(rows.features[label]), "string"):
            raise DataError(f'{_name(rows)}: column "{label}" is text. Pass the data through data.check first.')
        wanted = wanted.rename_column(label, "labels") if label != "labels" else wanted
    with _quiet():
        file = str(_temporary_file())
        return wanted.map(
            encode, batched=True, remove_columns=columns, cache_file_name=file, load_from_cache_file=False
        )


def _limit(tokenizer, max_length):
    # A tokenizer that does not know its model's limit says 1e30.
    limit = min(max_length or 1e30, tokenizer.model_max_length)
    return int(limit) if limit < 1e6 else None


@dataclass
class Lengths:
    """Token counts before truncation, and the share of padding in the batches of three ways to pad; see `lengths`.

    >>> Lengths(np.array([4, 8]), 16, 2, 0, {"to max_length": 0.625}).waste["to max_length"]
    0.625
    """

    lengths: np.ndarray
    max_length: int
    batch_size: int
    truncated: int
    waste: dict

    def table(self):
        used = np.minimum(self.lengths, self.max_length).sum()
        return Table(
            {"padding": way, "tokens in batches": round(used / (1 - waste)), "of these padding": waste}
            for way, waste in self.waste.items()
        )

    def __str__(self):
        low, middle, high = (int(value) for value in np.quantile(self.lengths, [0, 0.5, 1]))
        cut = f"{self.truncated} of {len(self.lengths)} rows are longer than {self.max_length} tokens and are cut."
        return f"{low} to {high} tokens a row, median {middle}. {cut}\n{self.table()}"

    __repr__ = __str__

    def _repr_html_(self):
        return f"<p>{html.escape(str(self).splitlines()[0])}</p>{self.table()._repr_html_()}"


def lengths(dataset, tokenizer=None, *, text="text", max_length=512, batch_size=16, seed=0):
    """Counts tokens, truncated rows and padding, for three ways to make batches of these rows.

    Without a tokenizer the data set has to be tokenised already. "Grouped by length" is the Trainer's
    `train_sampling_strategy="group_by_length"`: shuffled, sorted within a quarter of the rows at a time, or within 50
    batches where that is less, and the longest row swapped to the front.

    >>> from datasets import Dataset
    >>> print(lengths(Dataset.from_dict({"length": [4, 8] * 8}), max_length=16, batch_size=2, seed=1))
    4 to 8 tokens a row, median 6. 0 of 16 rows are longer than 16 tokens and are cut.
    padding            tokens in batches  of these padding
    to max_length      256                0.625
    to the longest     120                0.200
    grouped by length  104                0.077

    Taught in notebooks/01_classification.ipynb, "Round 1: how much of the work is padding?".
    """
    if tokenizer is not None:
        columns = _columns(text)
        _single(dataset, columns)
        rows = dataset.with_format(None).select_columns(columns)
        batches = (
            tokenizer(*[batch[c] for c in columns], truncation=False, verbose=False) for batch in rows.iter(1000)
        )
        n = [len(ids) for batch in batches for ids in batch["input_ids"]]
    elif "length" in _single(dataset).column_names:
        n = _column(dataset, "length")
    else:
        _single(dataset, ["input_ids"])
        n = np.concatenate([pc.list_value_length(b["input_ids"]).to_numpy() for b in _batches(dataset, ["input_ids"])])
    n = np.asarray(n, dtype=np.int64)
    cut = np.minimum(n, max_length)
    shuffled = np.random.default_rng(seed).permutation(cut)
    together = max(1, min(len(cut) // (4 * batch_size), 50)) * batch_size
    groups = np.array_split(shuffled, range(together, len(cut), together))
    grouped = np.concatenate([np.sort(group)[::-1] for group in groups])
    longest = together * grouped[::together].argmax()
    grouped[[0, longest]] = grouped[[longest, 0]]
    starts = np.arange(0, len(cut), batch_size)
    sizes = np.diff(np.append(starts, len(cut)))
    waste = {"to max_length": float(1 - cut.mean() / max_length)}
    for way, order in {"to the longest": shuffled, "grouped by length": grouped}.items():
        waste[way] = float(1 - cut.sum() / (np.maximum.reduceat(order, starts) * sizes).sum())
    return Lengths(n, max_length, batch_size, int((n > max_length).sum()), waste)


# ---- Generation --------------------------------------------------------------------------------------

ROLES = ("system", "user", "assistant")


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
Rename it, or pass its name.

    Taught in notebooks/02_generation.ipynb, "See the data".
    """
    if (prompt is None) != (answer is None):
        raise DataError('prompt= and answer= belong together, such as prompt="question", answer="reply". Pass both.')
    splits = _splits(dataset)
    found = {where: _conversation_problems(where, rows, prompt, answer, system) for where, rows in splits.items()}
    _raise([problem for problems in found.values() for problem in problems], ", ".join(splits))
    return _each(dataset, lambda rows: _conversations(rows, prompt, answer, system))


def _conversation_columns(rows, prompt, answer):
    if prompt is not None:
        return [*_fields(prompt), answer]
    if "messages" in rows.column_names:
        return ["messages"]
    return ["instruction", *(["input"] if "input" in rows.column_names else []), "output"]


def _conversation_problems(where, rows, prompt, answer, system):
    columns = _conversation_columns(rows, prompt, answer)
    if prompt is not None:
        return _pair_problems(where, rows, prompt, answer)
    if columns == ["messages"]:
        return _missing(where, rows, columns) or _turn_problems(where, rows, system)
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        near = "".join(_closest(column, rows.column_names, f'closest to "{column}": ') for column in missing)
        return [
            f'{where}: has no column "messages", nor "instruction" and "output", it has {_names(rows.column_names)}'
            f'{near}. Name your own in data.to_messages, such as prompt="{{passage}} {{question}}", answer="reply".'
        ]
    if "input" in columns and not _is_text(rows.features["input"], "string", "null"):
        return [_wrong_type(where, rows, "input", "text")]
    return _pair_problems(where, rows, "instruction", "output")


def _pair_problems(where, rows, prompt, answer):
    """What is wrong with the texts of a prompt (or source) and an answer (or target)."""
    fields = _fields(prompt)
    if answer in fields:
        return [f'{where}: column "{answer}" is the answer, and in the prompt too. Take it out of {_short(prompt)}.']
    columns = [*fields, answer]
    found = _missing(where, rows, columns)
    return found or [problem for column in columns for problem in _text_problems(where, rows, column)]


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


def _records(batch, columns):
    """The rows of a batch as dicts."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*(batch[c] for c in columns), strict=True)]


def _turn_problems(where, rows, system):
    feature = rows.features["messages"]
    parts = _inner(feature) if _is_list(feature) else None
    if not isinstance(parts, dict) or not all(_is_text(parts.get(p), "string", "null") for p in ("role", "content")):
        what = 'holds no lists of {"role": "user", "content": "..."}'
        return [f'{where}: column "messages" {what}. Make them such lists, or name other columns: prompt=, answer=.']
    found, numbers = {}, itertools.count(1)
    for batch in _batches(rows, ["messages"]):
        for messages in batch["messages"].to_pylist():
            found.setdefault(_turn_problem(messages, system), []).append(next(numbers))
    return [f"{_rows(where, bad[:SHOWN], len(bad))}: {what}." for what, bad in found.items() if what]


def _turn_problem(messages, system):
    """What is wrong with one conversation, or None."""
    if not messages:
        return "there are no messages. Drop the row"
    if any(message is None or None in (message["role"], message["content"]) for message in messages):
        return "a role or a content is missing (null). Fill it in, or drop the row"
    roles = [message["role"] for message in messages]
    unknown = next((role for role in roles if role not in ROLES), None)
    if unknown is not None:
        near = _closest(unknown, ROLES, "closest: ")
        return f"role {_short(unknown)} is not one of {_names(ROLES)}{near}. Rename it"
    empty = next((message["role"] for message in messages if not message["content"].strip()), None)
    if empty:
        return f"a message of the {empty} is empty. Fill it in, or drop the row"
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        return "a system message is not the first one. Put it first, or drop it"
    if turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        return "user and assistant do not take turns, the user first. Join messages of one role that follow each other"
    if roles[-1] != "assistant":
        return "the last message is not an assistant's, so there is no answer. Add it, or drop the row"
    if system and roles[0] == "system":
        return "there is a system message already. Leave system= out"
    return None


def _conversations(rows, prompt, answer, system):
    columns = _conversation_columns(rows, prompt, answer)
    first = [{"role": "system", "content": system}] if system else []

    def turns(row):
        if columns == ["given"]:
            return [{"role": message["role"], "content": message["content"]} for message in row["given"]]
        if prompt is not None:
            asked, reply = _filled(prompt, row), row[answer]
        else:
            asked, reply = "\n".join(filter(str.strip, [row["instruction"], row.get("input") or ""])), row["output"]
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]

    if columns == ["messages"] and not system and set(_inner(rows.features["messages"])) == {"role", "content"}:
        made = rows.with_format(None).select_columns(columns)  # nothing to write
    else:
        given = rows
        if columns == ["messages"]:  # under its own name a column keeps its old type, so its other keys too
            given, columns = rows.select_columns(columns).rename_column("messages", "given"), ["given"]
        made = _map(
            given, lambda batch: {"messages": [first + turns(row) for row in _records(batch, columns)]}, columns
        )
    if rows._fingerprint in _file_names:  # a conversation for each row, so the numbers are still the file's
        _file_names[made._fingerprint] = _file_names[rows._fingerprint]
    return made


def tokenize_chat(dataset, tokenizer, *, max_length=None, too_long="error"):
    """Turns conversations into token ids, with labels on the assistant's turns and -100 on all other tokens.

    The tokenizer's own chat template writes them, the same that `apply_chat_template` uses when the model is asked, so
    there is one begin token. The token that ends an answer counts too: from it the model learns to stop. Returns
    `input_ids`, `attention_mask`, `labels`, `length`; nothing is padded: `DataCollatorForSeq2Seq(tokenizer)` pads a
    batch, labels with -100. `max_length` never cuts an answer: longer rows are an error, or left out by
    `too_long="drop"` (compare `num_rows`).

    Raises `DataError` for what `to_messages` would refuse, for a tokenizer without a chat template, for one that pads
    with the token that ends an answer, and for rows in which the template does not show where an answer starts.

    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> tokenizer.chat_template = (
    ...     "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    ...     "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    >>> rows = to_messages(Dataset.from_dict({"instruction": ["Is it good?"], "output": ["Very good."]}))
    >>> examples = tokenize_chat(rows, tokenizer)
    >>> preview(examples[0], tokenizer)
    <|user|> is it good? <|end|> <|assistant|>[[ very good. <|end|>]]
    4 of 11 tokens count

    Taught in notebooks/02_generation.ipynb, "Round 1: which tokens count".
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"this {type(tokenizer).__name__} has no chat template: it is of a base model, or of an encoder-decoder "
            "(use data.tokenize_pairs). Set tokenizer.chat_template before training, and save it with the model."
        )
    encode = functools.partial(_chat_examples, tokenizer, _special_ids(tokenizer))
    return _examples(to_messages(dataset), ["messages"], encode, _limit(tokenizer, max_length), too_long)


REWRITTEN = (
    "the chat template writes a conversation in another way once an answer is added, so where the answer starts is not "
    "known. Use a template that only appends, and contents without white space around them"
)
MASKED = "all labels are masked: the template writes nothing of an answer, so nothing would be learnt. Correct it"
ENDLESS = "no special token ends the answer, so the model would never learn to stop. End it in the chat template"


def _special_ids(tokenizer):
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _chat_examples(tokenizer, special, batch):
    """Yields for each conversation its example, and what is wrong with it."""
    turns = [
        (row, i) for row, m in enumerate(batch["messages"]) for i, one in enumerate(m) if one["role"] == "assistant"
    ]
    starts = _chat_ids(tokenizer, [batch["messages"][row][:i] for row, i in turns], add_generation_prompt=True)
    ends = _chat_ids(tokenizer, [batch["messages"][row][: i + 1] for row, i in turns])
    whole = {row: ids for (row, _), ids in zip(turns, ends, strict=True)}  # a row's last turn is there last
    labels, problems = {row: [-100] * len(ids) for row, ids in whole.items()}, {}
    for (row, _), start, end in zip(turns, starts, ends, strict=True):
        # Some templates go on after the end token, with a new line: nobody generates that far.
        stop = max((at + 1 for at in range(len(start), len(end)) if end[at] in special), default=None)
        if end[: len(start)] != start or whole[row][: len(end)] != end:
            problems[row] = REWRITTEN
        elif len(start) == len(end):
            problems[row] = MASKED
        elif stop is None:
            problems[row] = ENDLESS
        elif end[stop - 1] == tokenizer.pad_token_id:
            raise DataError(
                f'the token "{tokenizer.pad_token}" ends an answer and is the pad token too: what masks the padding '
                "would mask the end of each answer, and the model would never learn to stop. Set tokenizer.pad_token "
                "to a token of its own."
            )
        else:
            labels[row][len(start) : stop] = end[len(start) : stop]
    for row, ids in whole.items():
        yield _example(ids, labels[row]), problems.get(row)


def _chat_ids(tokenizer, conversations, **options):
    from jinja2 import TemplateError

    try:
        found = tokenizer.apply_chat_template(
            conversations, tokenize=True, return_dict=True, tokenizer_kwargs={"verbose": False}, **options
        )
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses a conversation ({_first_line(error)}). Change the messages, or the template."
        ) from None
    return found["input_ids"]


def _example(ids, labels):
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "length": len(ids)}


def _examples(dataset, columns, encode, limit, too_long):
    """The examples of each split; raises for wrong rows, and for long ones where they are not to be dropped."""
    import datasets

    if too_long not in ("error", "drop"):
        raise DataError(f'too_long={too_long!r} is not known. Pass "error" or "drop".')
    made, problems = {}, []
    for where, rows in _splits(dataset).items():
        wrong, long, numbers = {}, {}, itertools.count(1)

        def checked(batch, wrong=wrong, long=long, numbers=numbers):
            examples = []
            for example, problem in encode(batch):
                row, n = next(numbers), max(len(example["input_ids"]), len(example["labels"]))
                if problem:
                    wrong.setdefault(problem, []).append(row)
                elif limit is not None and n > limit:
                    long[row] = n
                examples.append(example)
            return {name: [example[name] for example in examples] for name in examples[0]}

        made[where] = _map(rows, checked, columns)
        problems += [f"{_rows(where, found[:SHOWN], len(found))}: {what}." for what, found in wrong.items()]
        if long and (too_long == "error" or len(long) == rows.num_rows):
            problems.append(_too_long(where, long, limit))
        if long:
            made[where] = made[where].select([i for i in range(rows.num_rows) if i + 1 not in long])
    _raise(problems, ", ".join(made))
    if not isinstance(dataset, dict):
        return made.popitem()[1]
    return datasets.DatasetDict({name: made[name] for name in dataset})


def _too_long(where, long, limit):
    rows, counts = list(long)[:SHOWN], ", ".join(map(str, list(long.values())[:SHOWN]))
    return (
        f"{_rows(where, rows, len(long))}: {counts}{', ...' if len(long) > SHOWN else ''} tokens, where {limit} are "
        "allowed, so the end would be cut off. Raise max_length (as far as the model takes it), shorten the texts, or "
        'drop the rows with too_long="drop".'
    )


def tokenize_pairs(dataset, tokenizer, *, source, target, max_length=None, too_long="error"):
    """Turns pairs of texts into token ids for an encoder-decoder: `input_ids` of the source, `labels` of the target.

    `source` is a column or a format string such as "summarize: {text}", `target` a column. Labels end with the end
    token, and all of them count. Returns `input_ids`, `attention_mask`, `labels`, `length` (of the source), not padded:
    `DataCollatorForSeq2Seq(tokenizer)` does that. `max_length` is for each side; `too_long` is as in `tokenize_chat`.

    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"), eos_token="[SEP]")
    >>> rows = Dataset.from_dict({"text": ["A very good book."], "title": ["Good book"]})
    >>> preview(tokenize_pairs(rows, tokenizer, source="Title: {text}", target="title")[0], tokenizer)
    source: [CLS] title : a very good book. [SEP]
    target: [[[CLS] good book [SEP]]]
    4 of 13 tokens count

    Taught in notebooks/02_generation.ipynb, "Round 4: two architectures, the same titles".
    """
    if tokenizer.eos_token_id is None:
        raise DataError("this tokenizer has no end token: the model could not learn to stop. Set tokenizer.eos_token.")
    splits = _splits(dataset)
    found = [problem for where, rows in splits.items() for problem in _pair_problems(where, rows, source, target)]
    _raise(found, ", ".join(splits))
    columns, end = [*_fields(source), target], tokenizer.eos_token_id

    def encode(batch):
        rows = _records(batch, columns)
        asked, wanted = [_filled(source, row) for row in rows], [row[target] for row in rows]
        found = tokenizer(asked, text_target=wanted, truncation=False, verbose=False)
        for ids, labels in zip(found["input_ids"], found["labels"], strict=True):
            yield _example(ids, labels if labels[-1:] == [end] else [*labels, end]), None

    return _examples(dataset, columns, encode, _limit(tokenizer, max_length), too_long)


@dataclass
class Preview:
    """One example as text, in which the tokens that count are marked; see `preview`.

    `parts` are {name: [(text, whether it counts), ...]}.

    >>> Preview({"": [("Is it good?", False), (" Yes.", True)]}, 2, 6)
    Is it good?[[ Yes.]]
    2 of 6 tokens count
    """

    parts: dict
    n_counted: int
    n_tokens: int

    def __str__(self):
        lines = []
        for name, pieces in self.parts.items():
            text = "".join(f"[[{text}]]" if counts else text for text, counts in pieces)
            lines.append(f"{name}: {text.strip()}" if name else text.strip())
        return "\n".join([*lines, f"{self.n_counted} of {self.n_tokens} tokens count"])

    __repr__ = __str__

    def _repr_html_(self):
        # Blue and grey are told apart by every eye, and each is legible on white and on black.
        styles = {True: "background: #0072b2; color: #ffffff", False: "color: #767676"}
        lines = []
        for name, pieces in self.parts.items():
            spans = "".join(f'<span style="{styles[counts]}">{html.escape(text)}</span>' for text, counts in pieces)
            heading = f"<b>{name}</b> " if name else ""
            lines.append(f'<div style="white-space: pre-wrap; font-family: monospace">{heading}{spans}</div>')
        return "".join(lines) + f"<div>{self.n_counted} of {self.n_tokens} tokens count</div>"


def preview(example, tokenizer):
    """Shows an example of `tokenize_chat`, `tokenize_pairs` or `align_labels` as text, the tokens that count marked.

    In a notebook they are blue, in print they stand in [[double brackets]]. A source and its target are shown apart.

    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> ids = tokenizer("very good value")["input_ids"]
    >>> preview({"input_ids": ids, "labels": [-100, -100, *ids[2:]]}, tokenizer)
    [CLS] very[[ good value [SEP]]]
    3 of 5 tokens count

    Taught in notebooks/02_generation.ipynb, "Round 1: which tokens count".
    """
    ids, labels = ([int(number) for number in example[name]] for name in ("input_ids", "labels"))
    # Labels of a target are other tokens, and all count; else there is one for each token of the text.
    if len(ids) == len(labels) and (-100 in labels or labels == ids):
        parts = {"": _pieces(ids, [label != -100 for label in labels], tokenizer)}
        return Preview(parts, len(labels) - labels.count(-100), len(ids))
    target = [label for label in labels if label != -100]
    source = _pieces(ids, [False] * len(ids), tokenizer)
    parts = {"source": source, "target": _pieces(target, [True] * len(target), tokenizer)}
    return Preview(parts, len(target), len(ids) + len(target))


def _pieces(ids, counts, tokenizer):
    """The text of each run of tokens that count, or do not."""
    pieces, text, end = [], "", 0
    for counted, run in itertools.groupby(counts):
        end += len(list(run))
        # All up to here, as words are joined by what stands before; half a character waits for its other bytes.
        now = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        now = now if end == len(ids) else now.rstrip("\ufffd")
        pieces.append((now[len(text) :], counted))
        text = now
    return pieces


# ---- What the functions above share ------------------------------------------------------------------


@contextlib.contextmanager
def _quiet():
    """Hides the progress bars of `datasets`, and leaves them as they were."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


def _columns(text):
    return [text] if isinstance(text, str) else list(text)


def _each(dataset, change):
    import datasets

    if isinstance(dataset, dict):
        return datasets.DatasetDict({name: change(rows) for name, rows in dataset.items()})
    return change(dataset)


def _name(rows):
    return _file_names.get(rows._fingerprint, "the data")


def _splits(dataset, name=None, needs=()):
    """{what errors call it: Dataset}, with the training split first; raises where a needed column is missing."""
    import datasets

    named = dataset if isinstance(dataset, dict) else {None: dataset}
    for rows in named.values():
        if not isinstance(rows, datasets.Dataset):
            raise DataError(f"expected a Dataset or a dict of them, found {type(rows).__name__}. Use data.read first.")
    ordered = sorted(named.items(), key=lambda item: item[0] != "train")
    splits = {", ".join(filter(None, [name, key])) or _name(rows): rows for key, rows in ordered}
    _raise([problem for where, rows in splits.items() if needs for problem in _missing(where, rows, needs)])
    return splits


def _single(dataset, needs=()):
    if isinstance(dataset, dict):
        raise DataError(f"expected one Dataset, found the splits {_names(dataset)}. Pass one of them.")
    return next(iter(_splits(dataset, needs=needs).values()))


def _missing(where, rows, columns):
    problems = []
    for column in columns:
        if column not in rows.column_names:
            near = _closest(column, rows.column_names, "closest: ")
            has = _names(rows.column_names)
            problems.append(f'{where}: has no column "{column}", it has {has}{near}. Rename it, or pass its name.')
    if rows.num_rows == 0:
        problems.append(f"{where}: has no rows.")
    return problems


def _batches(rows, columns):
    """Arrow tables of these columns, one piece of the data set after the other."""
    yield from rows.with_format("arrow").select_columns(columns).iter(BATCH)


def _column(rows, column):
    return np.concatenate([batch[column].to_numpy() for batch in _batches(rows, [column])])


def _scan(rows, columns, tests):
    """{what: (first row numbers, how many)} for each test (batch -> mask) that found any row."""
    first, count, start = {what: [] for what in tests}, Counter(), 1
    for batch in _batches(rows, columns):
        for what, test in tests.items():
            found = np.flatnonzero(np.asarray(pc.fill_null(pa.array(_whole(test(batch))), False)))
            first[what] += (found[: SHOWN - len(first[what])] + start).tolist()
            count[what] += len(found)
        start += batch.num_rows
    return {what: (first[what], count[what]) for what in tests if count[what]}


def _rows_of(where, rows, label, values):
    """Where these labels are, as an error says it."""
    feature, wanted = rows.features[label], pa.array(values, pa.large_string())

    def test(batch):
        strings, parents = _strings(batch[label], feature)
        return _mask(pc.is_in(strings, value_set=wanted), parents, batch.num_rows)

    return _rows(where, *_scan(rows, [label], {"": test})[""])


def _whole(array):
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _flat(column):
    """The items of a column of lists, and the row that each is of."""
    column = _whole(column)
    return pc.list_flatten(column), np.asarray(pc.list_parent_indices(column))


def _mask(found, parents, n_rows):
    if parents is None:
        return found
    mask = np.zeros(n_rows, dtype=bool)
    mask[parents[np.asarray(_whole(found))]] = True
    return mask


def _strings(column, feature):
    """Labels as text, null where there is none; and for tags, the row that each is of."""
    column, parents = _flat(column) if _is_list(feature) else (_whole(column), None)
    names = getattr(_inner(feature), "names", None)
    if names is not None:
        known = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
        return pa.array(names, pa.large_string()).take(pc.if_else(known, column, None)), parents
    if pa.types.is_floating(column.type):  # pandas makes floats of whole numbers where some are missing
        column = pc.if_else(pc.is_finite(column), column, None)
        return pc.replace_substring_regex(column.cast(pa.large_string()), r"\.0+$", ""), parents
    column = column.cast(pa.large_string())
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column), parents


def _keys(rows, columns, nearly=False):
    """One 64-bit hash for the text of each row, 0 where there is none."""
    from pandas.util import hash_array

    keys, between = [], pa.scalar("\x1f", pa.large_string())
    for column in columns:
        if not _is_text(_inner(rows.features[column]), "string", "null"):
            raise DataError(_wrong_type(_name(rows), rows, column, "text"))
    for batch in _batches(rows, columns):
        joined = None
        for column in (_whole(batch[c]) for c in columns):
            if pa.types.is_nested(column.type):
                column = pc.binary_join(column, " ")
            column = pc.fill_null(column.cast(pa.large_string()), "")
            if nearly:
                plain = pc.replace_substring_regex(pc.utf8_lower(column), r"[\p{P}\s]+", " ")
                plain = pc.utf8_trim_whitespace(plain)
                column = pc.if_else(pc.equal(plain, ""), column, plain)  # ":)" and ":(" are not the same text
            joined = column if joined is None else pc.binary_join_element_wise(joined, column, between)
        hashed = hash_array(joined.to_numpy(zero_copy_only=False), categorize=False)
        blank = pc.equal(pc.replace_substring_regex(joined, r"[\s\x1f]+", ""), "")
        keys.append(np.where(np.asarray(blank), np.uint64(0), hashed))
    return np.concatenate(keys)


def _is_list(feature):
    import datasets

    return isinstance(feature, (datasets.List, datasets.LargeList))


def _inner(feature):
    return feature.feature if _is_list(feature) else feature


def _is_text(feature, *kinds):
    """Whether a column's type starts with one of these: "large_string" counts as a string."""
    dtype = getattr(feature, "dtype", None)
    return isinstance(dtype, str) and dtype.removeprefix("large_").startswith(kinds)


def _wrong_type(where, rows, column, wanted):
    feature = rows.features[column]
    found = getattr(feature, "dtype", None) if not _is_list(feature) else "list"
    return f'{where}: column "{column}" holds {found or "objects"}, not {wanted}. Pass the name of the right column.'


def _is_number(text):
    return re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text.strip()) is not None


def _closest(word, words, say):
    near = difflib.get_close_matches(word, list(words)[:1000], n=1, cutoff=0.6)
    return f" ({say}{near[0]})" if near else ""


def _short(value, width=40):
    text = value if isinstance(value, str) else str(value)
    text = " ".join(text.split()) if text.strip() else text
    return f'"{text[:width]}..."' if len(text) > width else f'"{text}"'


def _names(values):
    values = [str(value) for value in values]
    return ", ".join(values[:10]) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


def _count(n, what):
    return f"{n} {what}" + ("" if n == 1 else "s")


def _rows(where, rows, count):
    more = f" and {count - len(rows)} more" if count > len(rows) else ""
    return f"{where}, row{'s' if count > 1 else ''} {', '.join(map(str, rows))}{more}"


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _raise(problems, name="the data"):
    """Raises one DataError with all the problems, or returns when there are none."""
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise DataError("\n  ".join([f"{name}: {len(problems)} problems", *problems]))
