"""`helpers.data`: every bad input has an error that says what, where and what to do, and files stay as they are."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from helpers import data

ROWS = [{"text": "Good value", "label": "positive"}, {"text": "Fell apart", "label": "negative"}]
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
UTF8 = "text,label\nCafé,positive\nBad,negative\n"


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(function, *parts):
    """The message of the DataError, in which each of the parts has to be."""
    with pytest.raises(data.DataError) as caught:
        function()
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


def digest(path):
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(one): hashlib.sha256(one.read_bytes()).hexdigest() for one in files if one.is_file()}


def table(**columns):
    return Dataset.from_dict(columns)


def texts(*values):
    return table(text=list(values), label=["a", "b"] * (len(values) // 2) + ["a"] * (len(values) % 2))


# ---- read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", CSV),
        ("r.csv", "\ufeff" + CSV),
        ("r.csv", CSV.replace("\n", "\r\n")),
        ("r.csv", CSV.replace("Good value", '"Good value"').rstrip("\n")),
        ("r.csv", CSV.replace(",", ";")),
        ("r.tsv", CSV.replace(",", "\t")),
        ("R.CSV", CSV.replace("\nFell", "\n\nFell")),
        ("r.json", json.dumps(ROWS)),
        ("r.json", json.dumps(ROWS, indent=2)),
        ("r.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("r.ndjson", "\n\n".join(map(json.dumps, ROWS)) + "\n"),
    ],
)
def test_formats(file, name, content):
    path = file(name, content)
    before = digest(path.parent)
    rows = data.read(path)
    assert rows[:] == {"text": ["Good value", "Fell apart"], "label": ["positive", "negative"]}
    assert rows.cache_files, "memory-mapped"
    assert path.parent not in Path(rows.cache_files[0]["filename"]).parents
    checked = data.check(rows)
    assert checked["label"][:] == [1, 0]
    assert checked.column_names == ["text", "label"]
    assert digest(path.parent) == before


def test_parquet_with_categories(tmp_path):
    label = pa.array(["b", "a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"text": ["x", "y", "z"], "label": label}), tmp_path / "r.parquet")
    assert data.check(data.read(tmp_path / "r.parquet"))["label"][:] == [1, 0, 1]


def test_saved_folder_dataset_and_dict_stay_as_they_are(tmp_path):
    rows = data.check(Dataset.from_list(ROWS))
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    before = digest(tmp_path)
    found = data.read(tmp_path / "saved", split="test")
    assert data.check(found, labels=["positive", "negative"])["label"][:] == [0, 1]
    assert data.check(found.shuffle(seed=0), labels=["positive", "negative"]).num_rows == 2
    assert digest(tmp_path) == before
    refused(lambda: data.read(tmp_path / "saved"), "saved: has several splits", "train, test", "split=")
    assert data.read(rows) is rows
    refused(lambda: data.read(rows, split="train"), "one split already")
    refused(lambda: data.read(DatasetDict(train=rows), split="tset"), "has no split 'tset'", "train")


def test_csv_is_read_as_it_is_written(file):
    rows = data.read(file("r.csv", 'text,label,\n"two\nlines, one cell",None,007\nNA,null,1\n'))
    assert rows[0] == {"text": "two\nlines, one cell", "label": "None", "Unnamed: 2": "007"}
    assert rows[1] == {"text": "NA", "label": "null", "Unnamed: 2": "1"}


def test_json_keeps_what_is_inside(file, monkeypatch):
    rows = [{"text": f"“{i}” \\ é", "label": "ab"[i % 2], "more": {"n": [i] * (i % 3)}} for i in range(50)]
    path = file("r.json", json.dumps(rows, indent=1))
    lines = file("r.jsonl", "\n".join(map(json.dumps, rows)))
    for size in (1, 7, 64):
        monkeypatch.setattr(data, "BATCH", size)
        assert data.read(path).to_list() == data.read(lines).to_list() == rows


def test_json_types_are_known_at_the_end_only(file, monkeypatch):
    monkeypatch.setattr(data, "BATCH", 1)
    path = file("r.jsonl", '{"a": null}\n{"a": 1, "b": "x"}\n{"a": 0.5}\n')
    assert data.read(path).to_list() == [{"a": None, "b": None}, {"a": 1.0, "b": "x"}, {"a": 0.5, "b": None}]


BAD_FILES = {
    "unknown format": ("r.xlsx", "x", ["r.xlsx: unknown format '.xlsx'", ".csv", ".parquet"]),
    "empty": ("r.csv", "", ["r.csv: the file is empty"]),
    "blank": ("r.csv", "\n\n", ["r.csv: holds no rows"]),
    "only a header": ("r.csv", "text,label\n", ["r.csv: holds no rows"]),
    "only a header, no newline": ("r.csv", "text,label", ["r.csv: holds no rows"]),
    "no header, number": ("r.csv", "Good,1\nBad,0\n", ["looks like data", '"1" is a number', "text,label"]),
    "no header, tabs": ("r.tsv", "Good\t1\tx\nBad\t0\ty\n", ['"1" is a number', "such as 'text\\tlabel\\tcolumn 3'"]),
    "no header, twice": ("r.csv", "good,good\nBad,b\n", ['"good" is there twice']),
    "no header, again": ("r.csv", "Good,pos\nBad,neg\nFine,pos\n", ['"pos" is found again', "row 2"]),
    "ragged": (
        "r.csv",
        "text,label\nGood,a\nWell, well,b\n\nBad\n",
        [
            "2 problems",
            "r.csv, row 2: has 3 cells where the header has 2",
            '"Well, well,b"',
            "row 3: has 1 cell",
            "quot",
        ],
    ),
    "open quotation mark": (
        "r.csv",
        'text,label\nGood,a\n"Bad,b\nFine,a\n',
        ["row 2: cannot be read as CSV", "unexpected end of data", "Close each quotation mark"],
    ),
    "not UTF-8": (
        "r.csv",
        UTF8.encode("cp1252"),
        ["r.csv, line 2: byte 4 of the line (0xe9)", "cp1252", "Path('utf8.csv').write_text"],
    ),
    "nor cp1252": (
        "r.csv",
        b"text,label\nca\xf1a \x81,a\n",
        ["r.csv, line 2: byte 3", "Nor is it cp1252", ".read_text('utf-8', 'replace'), 'utf-8')`"],
    ),
    "a word of blanks": ("r.conll", "Ada\tB-X\n\u3000\tO\n", ['line 2: has 2 columns, one of them empty ("O")']),
    "a file for each text": (
        "r.json",
        '{"id": "1", "text": "a"}',
        ["not a list of objects", "If each file is one text"],
    ),
    "broken UTF-16": ("r.csv", UTF8.encode("utf-16")[:-1], ["looks like UTF-16 and is not"]),
    "broken JSON": ("r.json", '[\n{"text": "a"},\n{"text": }\n]', ["r.json, line 3: broken JSON", "Expecting value"]),
    "cut JSON": ("r.json", '[\n{"text": "a"},\n{"text": "b', ["r.json, line 3: broken JSON"]),
    "JSON without end": ("r.json", '[\n{"text": "a"}\n', ["r.json, line 3: broken JSON", "Expecting ',' delimiter"]),
    "JSON with more": ("r.json", '[{"text": "a"}] 1', ["r.json, line 1: broken JSON", "Extra data"]),
    "JSON without comma": (
        "r.json",
        '[{"text": "a"}\n{"text": "a"}]',
        ["r.json, line 2: broken JSON", "Expecting ',' delimiter"],
    ),
    "one JSON object": ("r.json", '{"data": []}', ["not a list of objects", ".jsonl"]),
    "a JSON number": ("r.json", "3", ["not a list of objects"]),
    "JSON of lists": ("r.json", '[{"text": "a"}, ["b"]]', ["row 2: holds a list, not an object"]),
    "empty JSON list": ("r.json", "[]", ["holds no rows"]),
    "broken JSON line": ("r.jsonl", '{"text": "a"}\n\n{"text": "b"\n', ["r.jsonl, line 3: broken JSON", "column"]),
    "lists as JSON lines": ("r.jsonl", '["a"]\n["b"]', ["r.jsonl, line 2: broken JSON", "Extra data"]),
    "a number as a JSON line": ("r.jsonl", '{"text": "a"}\n3\n', ["row 2: holds a number, not an object"]),
    "mixed kinds": (
        "r.jsonl",
        '{"label": "a"}\n{"label": 2}\n{"label": "b"}\n{"label": 3}\n',
        ['r.jsonl, row 2: column "label" holds a number (2)', "string vs int64", "one kind"],
    ),
    "mixed inside": (
        "r.jsonl",
        '{"x": ["a"]}\n{"x": [1]}\n{"x": ["b"]}\n',
        ['row 2: column "x" holds a list ([1]), which does not fit'],
    ),
    "huge number": ("r.jsonl", '{"x": 1}\n{"x": 99999999999999999999}\n{"x": 2}\n', ['row 2: column "x"']),
    "half a character": ("r.jsonl", '{"x": "a"}\n{"x": "\\ud800"}\n', ['row 2: column "x"', "surrogates"]),
    "deep": ("r.jsonl", '{"a":' * 100_000, ["line 1: broken JSON"]),
    "not Parquet": ("r.parquet", "text,label\n", ["cannot be read as Parquet"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(file, case):
    name, content, parts = BAD_FILES[case]
    path = file(name, content)
    before = digest(path.parent)
    refused(lambda: data.read(path), *parts)
    assert digest(path.parent) == before


def test_kinds_that_change_far_down_the_file(file, monkeypatch):
    monkeypatch.setattr(data, "BATCH", 2)
    path = file("r.jsonl", '{"x": 1}\n{"x": 2}\n{"x": 3}\n{"x": "a"}\n')
    refused(lambda: data.read(path), "row 4: column \"x\" holds text ('a'), which does not fit the rows before it")
    path = file("s.jsonl", '{"x": 1}\n{"x": 2}\n{"x": "b"}\n{"x": "a"}\n')
    refused(lambda: data.read(path), 's.jsonl, row 3: column "x" holds text')


def test_missing_files(file):
    path = file("reviews.csv", CSV)
    refused(
        lambda: data.read(path.with_name("review.csv")), "review.csv: there is no such file", "closest", "reviews.csv"
    )
    refused(lambda: data.read(path.parent / "no" / "r.csv"), "no folder")
    refused(lambda: data.read(path.parent), "save_to_disk wrote", "Pass one of its files (reviews.csv)")
    refused(lambda: data.read("no_such_thing"), "there is no such file", "Hub id")
    refused(lambda: data.read(path, split="train"), "reviews.csv: is one split already")
    refused(lambda: data.read(3), "got int")


def test_the_hub_through_its_local_cache(tmp_path):
    """In a process of its own: the libraries read HF_HOME when they are imported."""
    script = """
import os, pathlib, sys
from datasets import Dataset, DatasetInfo, SplitDict, SplitInfo, config
from datasets.arrow_writer import ArrowWriter
from helpers import data
rows = Dataset.from_dict({"text": ["Good", "Bad"], "label": ["pos", "neg"]})
folder = pathlib.Path(config.HF_DATASETS_CACHE, "acme___reviews", "default", "0.0.0", "a" * 40)
folder.mkdir(parents=True)
with ArrowWriter(path=str(folder / "reviews-train.arrow"), features=rows.features) as writer:
    writer.write_table(rows.data.table)
    writer.finalize()
splits = SplitDict({"train": SplitInfo("train", num_examples=2, dataset_name="reviews")}, dataset_name="reviews")
DatasetInfo(features=rows.features, builder_name="csv", dataset_name="reviews", config_name="default",
            version="0.0.0", splits=splits).write_to_directory(str(folder))
data.check(data.read("acme/reviews"))
assert list(pathlib.Path(config.HF_DATASETS_CACHE).glob("helpers-*"))
print(data.read("acme/reviews")["text"][:], data.read("acme/reviews", split="train").num_rows)
for name, split in (("acme/missing", None), ("acme/reviews", "test")):
    try:
        data.read(name, split=split)
    except data.DataError as error:
        print(error)
"""
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, missing, split = done.stdout.splitlines()
    assert first == "['Good', 'Bad'] 2"
    assert "acme/missing: could not be loaded" in missing
    assert "HF_HUB_OFFLINE" in missing
    assert split == "reviews: has no split 'test'. Pass split= one of train."
    assert not list(tmp_path.glob("datasets/helpers-*")), "removed when Python ends"


@pytest.mark.parametrize(("name", "say"), [("1.txt", r"Pass one of its files \(1.txt\)"), ("1.eml", "Pass a file,")])
def test_a_folder_of_documents(tmp_path, name, say):
    (tmp_path / name).write_text("Dear all")
    with pytest.raises(data.DataError, match=f"{say}.*save_to_disk.*If each file is one text"):
        data.read(tmp_path)


def test_an_error_names_twenty_problems():
    rows = Dataset.from_list([{"text": f"t{i}", "label": f"c{i}"} for i in range(25)]).class_encode_column("label")
    with pytest.raises(data.DataError, match="25 problems") as raised:
        data.split(rows)
    assert len(str(raised.value).splitlines()) == 22
    assert str(raised.value).endswith("and 5 more")


def test_import_is_light():
    code = "import sys, helpers.data; print({'torch', 'transformers'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).strip() == "set()"


# ---- check -----------------------------------------------------------------------------------------


def test_every_problem_in_one_error(file):
    body = ["Good,positive", ",positive", "Fine,postive", "   ,negative", "Bad,", "Hm,negative"]
    path = file("reviews.csv", "\n".join(["text,label", *body]))
    message = refused(
        lambda: data.check(data.read(path), labels=["negative", "neutral", "positive"]),
        "reviews.csv: 3 problems\n",
        'reviews.csv, rows 2, 4: the text in column "text" is empty. Fill it in, or drop the row.',
        "reviews.csv, row 5: the label is missing. Fill it in, or drop the row.",
        'reviews.csv, row 3: label "postive" is not one of negative, neutral, positive (closest: positive). '
        "Correct it, or pass labels=[...].",
    )
    assert len(message.splitlines()) == 4


def test_only_the_first_five_rows_are_named():
    rows = table(text=["x"] + [None] * 9, label=["a", "b"] * 5)
    refused(lambda: data.check(rows, name="r"), "r, rows 2, 3, 4, 5, 6 and 4 more: ")
    rows = table(text=["x"] * 12, label=[f"l{i}" for i in range(12)])
    refused(lambda: data.check(rows, labels=["a", "b"], name="r"), "r: 6 problems", "7 more values of label")


def test_a_row_number_is_only_the_files_when_it_is(file):
    rows = data.read(file("r.csv", CSV + " ,positive\n"))
    refused(lambda: data.check(rows), "r.csv, row 3")
    refused(lambda: data.check(rows.select([2, 0, 1])), "the data, row 1")


BAD_TABLES = {
    "no column": (
        {"Text": ["a"], "lable": ["x"]},
        {},
        ['no column "text", it has Text, lable (closest: Text)', "lable)"],
    ),
    "no rows": ({"text": [], "label": []}, {}, ["has no rows"]),
    "text not text": ({"text": [1, 2], "label": ["x", "y"]}, {}, ['column "text" holds int64, not text']),
    "label a list of lists": ({"text": ["a"], "label": [[["x"]]]}, {}, ['column "label" holds list of list']),
    "null text": ({"text": ["a", None], "label": ["x", "y"]}, {}, ["row 2", "missing (null)"]),
    "all null": ({"text": [None, None], "label": ["x", "y"]}, {}, ["rows 1, 2", "missing (null)"]),
    "null label": ({"text": ["a", "b", "c"], "label": ["x", "y", None]}, {}, ["row 3: the label is missing"]),
    "NaN label": ({"text": ["a", "b", "c"], "label": [0.0, 1.0, float("nan")]}, {}, ["row 3: the label is missing"]),
    "one class": ({"text": ["a", "b"], "label": ["x", "x"]}, {}, ['every label is "x"', "two classes"]),
    "fraction": ({"text": ["a", "b"], "label": [0.5, 1]}, {}, ['row 1: label "0.5" has a fraction']),
    "spelling": (
        {"text": list("abcd"), "label": ["Spam", "spam", "ham", "spam"]},
        {},
        ['row 1: label "Spam" differs from "spam" in case or unseen signs only'],
    ),
    "number too high": (
        {"text": ["a", "b", "c"], "label": [0, 1, 2]},
        {"labels": ["no", "yes"]},
        ['row 3: label "2" is not one of 0, 1'],
    ),
    "second text": (
        {"text": ["a", "b"], "other": ["", "c"], "label": [0, 1]},
        {"text": ("text", "other")},
        ['row 1: the text in column "other" is empty'],
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(case):
    columns, options, parts = BAD_TABLES[case]
    refused(lambda: data.check(table(**columns), **options), *parts)


def test_a_column_of_texts_is_no_label(monkeypatch):
    monkeypatch.setattr(data, "MOST_CLASSES", 5)
    refused(lambda: data.check(texts(*"abcdef"), label="text"), "more than 5 different values", "Is it the label?")


@pytest.mark.parametrize(
    ("values", "labels", "names", "numbers"),
    [
        (["b", "a", "b"], None, ["a", "b"], [1, 0, 1]),
        (["b", "a", "b"], ["b", "a", "c"], ["b", "a", "c"], [0, 1, 0]),
        ([1, 0, 1], None, ["0", "1"], [1, 0, 1]),
        ([5, 1, 10], None, ["1", "5", "10"], [1, 0, 2]),
        (["5", "1", "10"], None, ["1", "5", "10"], [1, 0, 2]),
        ([1, 0, 1], ["no", "yes"], ["no", "yes"], [1, 0, 1]),
        (["1", "0", "1"], ["no", "yes"], ["no", "yes"], [1, 0, 1]),
        ([1, 0, 1], [1, 0], ["1", "0"], [0, 1, 0]),
        ([1.0, 0.0, 1.0], None, ["0", "1"], [1, 0, 1]),
        ([True, False, True], None, ["false", "true"], [1, 0, 1]),
    ],
)
def test_labels_become_classes(values, labels, names, numbers):
    checked = data.check(table(text=["x", "y", "z"], label=values, other=[1, 2, 3]), labels=labels)
    assert checked.features["label"] == ClassLabel(names=names)
    assert checked["label"][:] == numbers
    assert checked.column_names == ["text", "label", "other"]
    assert checked["other"][:] == [1, 2, 3]
    again = data.check(checked)
    assert again["label"][:] == numbers
    assert again.features == checked.features


def test_many_pieces_and_chosen_rows(monkeypatch):
    monkeypatch.setattr(data, "BATCH", 3)
    rows = texts(*map(str, range(20))).shuffle(seed=1).select(range(3, 17))
    checked = data.check(rows)
    assert [checked.features["label"].int2str(i) for i in checked["label"]] == rows["label"][:]
    assert checked["text"][:] == rows["text"][:]
    bad = table(text=["x"] * 7 + [""] + ["x"] * 4 + [""], label=["a"] * 11 + ["b", None])
    refused(lambda: data.check(bad), "rows 8, 13", "row 13: the label is missing")


def test_classes_of_another_order_are_numbered_again():
    rows = data.check(texts("x", "y"))
    assert data.check(rows, labels=["b", "a"])["label"][:] == [1, 0]
    unlabelled = table(text=["x", "y", "z"], label=[0, 1, -1]).cast_column("label", ClassLabel(names=["a", "b"]))
    refused(lambda: data.check(unlabelled), "row 3: the label is missing")


def test_splits_are_checked_together():
    test = table(text=["new", "Bad", "other"], label=["a", "b", "bb"])
    splits = {"test": test, "train": texts("Good", "Bad", "Fine", "Poor")}
    refused(
        lambda: data.check(splits),
        "train, test: 2 problems",
        'test, row 3: label "bb" is not one of a, b, the labels of train',
        "test, row 2: the same text is in train (the first is row 2 there)",
        "data.without_overlaps",
        'duplicates="ignore"',
    )
    refused(lambda: data.check(splits, name="reviews"), "reviews, test, row 2")
    splits["test"] = test.select([0, 1])
    checked = data.check(splits, duplicates="ignore")
    assert list(checked) == ["test", "train"]
    assert checked["test"].features == checked["train"].features
    assert isinstance(checked, DatasetDict)
    refused(lambda: data.check([1]), "expected a Dataset")


# ---- check_tokens ----------------------------------------------------------------------------------


BAD_TAGS = {
    "lengths": (["Ada", "slept"], ["O"], ["row 2: tokens and tags differ in length"]),
    "I first": (["Ada"], ["I-PER"], ['row 2: tag "I-PER" starts a sentence. I-X has to follow B-X or I-X']),
    "I after O": (["Then", "Ada"], ["O", "I-PER"], ['row 2: tag "I-PER" follows "O"']),
    "I after another": (["Ada", "Rome"], ["B-PER", "I-LOC"], ['row 2: tag "I-LOC" follows "B-PER"']),
    "not BIO": (["Ada"], ["PER"], ['row 2: tag "PER" is not a BIO tag']),
    "no words": ([], [], ["row 2: the sentence has no words"]),
    "empty word": ([" "], ["O"], ["row 2: a word is empty"]),
    "null tag": (["Ada"], [None], ["row 2: a tag is missing"]),
}


@pytest.mark.parametrize("case", BAD_TAGS)
def test_bad_tags(case):
    words, tags, parts = BAD_TAGS[case]
    rows = table(tokens=[["Ada", "B", "ate"], words], tags=[["B-PER", "I-PER", "O"], tags])
    refused(lambda: data.check_tokens(rows), *parts)


def test_tags_become_classes():
    rows = table(tokens=[["in", "Rome"], ["Ada", "L"]], tags=[["O", "B-LOC"], ["B-PER", "I-PER"]])
    checked = data.check_tokens(rows)
    assert checked.features["tags"].feature.names == ["O", "B-LOC", "B-PER", "I-PER"]
    assert checked["tags"][:] == [[0, 1], [2, 3]]
    assert data.label_maps(checked, label="tags")["num_labels"] == 4
    assert data.check_tokens(checked)["tags"][:] == checked["tags"][:]
    refused(lambda: data.check_tokens(rows, labels=["O", "B-LOC"]), 'tags "B-PER" is not one of O, B-LOC')
    numbers = table(tokens=[["in", "Rome"], ["Rome"]], tags=[[0, 2], [1]])
    refused(lambda: data.check_tokens(numbers, labels=["O", "B-LOC", "I-LOC"]), 'tag "I-LOC" follows "O"')
    assert data.check_tokens(table(tokens=[["in", "Rome"]], tags=[[0, 1]]), labels=["O", "B-LOC"])["tags"][:] == [
        [0, 1]
    ]


def test_tags_need_lists_and_splits_that_do_not_overlap():
    refused(lambda: data.check_tokens(table(tokens=["Ada slept"], tags=["B-PER O"])), "holds string", "JSON Lines")
    rows = table(tokens=[["Ada", "ate"], ["So"]], tags=[["B-PER", "O"], ["O"]])
    refused(
        lambda: data.check_tokens({"train": rows, "test": rows.select([1])}), "test, row 1: the same text is in train"
    )


# ---- split and look --------------------------------------------------------------------------------


def test_split_keeps_shares_and_duplicates_together():
    n = 400
    rows = table(text=[f"t{i % 300}" for i in range(n)], label=["rare" if i % 300 < 30 else "common" for i in range(n)])
    rows = data.check(rows)
    splits = data.split(rows, validation=0.1, test=0.2, seed=3)
    assert {name: len(set(part["text"])) for name, part in splits.items()} == {
        "train": 210,
        "validation": 30,
        "test": 60,
    }
    assert sum(splits.num_rows.values()) == n
    assert data.overlaps(splits).leaks == 0
    rare = {
        name: len({t for t, y in zip(part["text"], part["label"], strict=True) if y == 1})
        for name, part in splits.items()
    }
    assert rare == {"train": 21, "validation": 3, "test": 6}
    again, other = data.split(rows, validation=0.1, test=0.2, seed=3), data.split(rows, seed=4)
    assert again["test"]["text"][:] == splits["test"]["text"][:] != other["test"]["text"][:]
    assert list(data.split(rows, validation=0)) == ["train", "test"]


def test_classes_too_small_to_split():
    rows = data.check(table(text=list("abcdefgg"), label=["x"] * 6 + ["y", "y"]))
    refused(lambda: data.split(rows), 'class "y" has 1 different text', "3 splits")
    refused(lambda: data.split(rows, validation=0.6, test=0.5), "less than 1")
    refused(lambda: data.split(rows, text="txt"), 'no column "txt"', "closest: text")
    refused(lambda: data.split({"train": rows}), "expected one Dataset")


def test_every_class_is_in_every_split():
    rows = data.check(texts(*map(str, range(6))))
    for part in data.split(rows).values():
        assert set(part["label"]) == {0, 1}


def test_overlaps():
    splits = {
        "train": texts("Good!", "Bad.", "bad", ":)", "Bad."),
        "test": texts("GOOD", "Bad.", ":("),
        "other": texts("new"),
    }
    found = data.overlaps(splits)
    rows = found.set_index(["kind", "of", "also in"])[["rows", "first"]]
    assert dict(zip(rows.index, rows.itertuples(index=False, name=None), strict=True)) == {
        ("exactly", "train", "train"): (1, "5"),
        ("exactly", "test", "train"): (1, "2"),
        ("nearly", "train", "train"): (2, "3, 5"),
        ("nearly", "test", "train"): (2, "1, 2"),
    }
    assert found.leaks == 2
    assert "<td>nearly</td>" in found._repr_html_()
    clean = data.without_overlaps(splits)
    assert clean["train"]["text"][:] == [":)"]
    assert clean["test"]["text"][:] == ["GOOD", "Bad.", ":("]
    assert data.overlaps(clean).leaks == 0
    assert data.overlaps({"train": texts("a")}).empty
    assert data.overlaps({"train": texts("a")}).leaks == 0


def test_pairs_of_sentences_overlap_as_pairs():
    pair = lambda a, b: table(text=[a], other=[b])  # noqa: E731
    splits = {"train": pair("a", "b"), "test": pair("a", "c"), "validation": pair("A", "b!")}
    found = data.overlaps(splits, text=("text", "other"))
    assert found[["kind", "of"]].to_numpy().tolist() == [["nearly", "validation"]]


def test_class_balance_and_label_maps():
    rows = data.check(texts(*"vwxyz"), labels=["a", "b", "never"])
    balance = data.class_balance({"train": rows, "test": rows.select([0])})
    assert balance.loc["train", "a"].tolist() == [3, 0.6]
    assert balance.loc["train", "never"]["count"] == 0
    assert len(balance) == 6
    assert data.class_balance(rows)["count"].to_dict() == {"a": 3, "b": 2, "never": 0}
    assert data.label_maps(rows)["id2label"] == {0: "a", 1: "b", 2: "never"}
    refused(lambda: data.label_maps(texts("a")), "no classes yet", "data.check")
    refused(lambda: data.class_balance(rows, label="lable"), 'no column "lable"', "closest: label")


def test_each_leaked_row_is_named_and_the_first_one_has_its_twin():
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    with pytest.raises(
        data.DataError, match=r"test, rows 1, 2: the same text is in train \(the first is row 1 there\)"
    ):
        data.check({"train": rows, "test": rows})


def test_a_column_with_too_many_values_has_no_balance():
    rows = Dataset.from_dict({"label": [str(i) for i in range(20_000)]})
    with pytest.raises(data.DataError, match="more than 10,000 different values"):
        data.class_balance(rows)


def test_one_dataset_has_no_overlaps_to_drop():
    with pytest.raises(data.DataError, match="a dict of splits"):
        data.without_overlaps(Dataset.from_dict({"text": ["a"], "label": ["b"]}))


def test_the_training_split_may_have_another_name():
    splits = {name: Dataset.from_dict({"text": ["Good!"]}) for name in ("training", "test")}
    assert data.overlaps(splits).leaks == 1


def test_values_without_a_common_type_are_an_error_of_the_data(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"x": 1152921504606846977}\n{"x": 0.5}\n')
    with pytest.raises(data.DataError, match=r"r\.jsonl, row"):
        data.read(file)


@pytest.mark.parametrize("check", [data.check, data.check_tokens])
def test_an_unknown_way_with_duplicates_is_refused(check):
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    with pytest.raises(data.DataError, match='"error" or "ignore"'):
        check({"train": rows, "test": rows}, duplicates="drop")


def test_a_misspelt_label_column_does_not_split_without_classes():
    rows = Dataset.from_dict({"text": [f"text {i}" for i in range(20)], "label": ["a", "b"] * 10})
    with pytest.raises(data.DataError, match='no column "lable"'):
        data.split(rows, label="lable")
