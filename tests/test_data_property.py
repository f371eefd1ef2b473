"""Thousands of malformed tables: `helpers.data` answers with a checked data set or with a DataError."""

import csv
import io
import itertools
import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, List
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import data

many = settings(
    max_examples=600,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

names = st.sampled_from(["text", "label", "Text", "labels", "", "1", "tokens", "naïve", "a b"])
words = st.sampled_from(
    ["Good", "bad one", "pos", "neg", "Pos", " ", "", "1", "2", "0.5", "nan", "None", "é", "\0", "–"]
)
strange = st.one_of(words, st.text(max_size=6))
scalars = st.one_of(
    strange,
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**70), 1e308, float("nan"), float("inf"), 0.5, 1.0]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2), max_leaves=5
)
usual = st.fixed_dictionaries({"text": strange, "label": st.sampled_from(["pos", "neg", "0", "1"])})
rows = st.dictionaries(names, values, max_size=3) | st.fixed_dictionaries({"text": scalars, "label": scalars}) | usual
tables = st.lists(rows, max_size=6) | st.lists(usual, max_size=8)


def damaged(draw, content):
    """The same bytes with some of them cut out, doubled or replaced, or untouched."""
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 20)))
        new = draw(st.sampled_from([b"", b'"', b",", b"\n", b"\xff", b"\xc3", b"{", b"]", b"\r", b"\0", b"\\", b"\t"]))
        content = content[:start] + new + content[end:]
    return content


@st.composite
def csv_files(draw):
    header = draw(st.lists(names, max_size=4) | st.just(["text", "label"]))
    body = draw(st.lists(st.lists(strange, max_size=4), max_size=6) | st.lists(st.tuples(strange, words), max_size=6))
    file = io.StringIO()
    writer = csv.writer(
        file, delimiter=draw(st.sampled_from(",,;\t")), lineterminator=draw(st.sampled_from(["\n", "\r\n"]))
    )
    writer.writerows([header, *body])
    return ".csv", damaged(
        draw, file.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"])))
    )


@st.composite
def json_files(draw):
    found = draw(tables | st.lists(values, max_size=3) | values)
    content = json.dumps(found, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    return ".json", damaged(draw, content.encode())


@st.composite
def json_lines_files(draw):
    found = draw(tables | st.lists(values, max_size=3))
    return ".jsonl", damaged(draw, "\n".join(map(json.dumps, found)).encode())


@st.composite
def in_memory(draw):
    n = draw(st.integers(0, 5))
    kinds = [strange, st.integers(-2, 3), st.floats(), st.booleans(), st.lists(strange, max_size=3), st.just({"a": 1})]
    columns = draw(st.lists(names, max_size=3, unique=True) | st.just(["text", "label"]))
    table = {}
    for column in columns:
        kind = draw(st.sampled_from(kinds))
        table[column] = draw(st.lists(kind | st.none(), min_size=n, max_size=n))
    return Dataset.from_dict(table)


def is_checked(rows):
    feature, labels = rows.features["label"], rows["label"][:]
    if isinstance(feature, List):  # a row may have several labels
        feature, labels = feature.feature, list(itertools.chain.from_iterable(labels))
    else:
        assert len(feature.names) >= 2
    assert isinstance(feature, ClassLabel)
    assert rows.num_rows > 0
    assert all(0 <= number < len(feature.names) for number in labels)
    assert all(text.strip() for text in rows["text"][:])


def checked_or_refused(function):
    """The one thing that must hold."""
    try:
        found = function()
    except data.DataError:
        return
    is_checked(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("malformed")


@pytest.mark.parametrize("files", [csv_files, json_files, json_lines_files])
def test_files(folder, files):
    @many
    @given(files())
    def run(made):
        suffix, content = made
        path = folder / f"rows{suffix}"
        path.write_bytes(content)
        checked_or_refused(lambda: data.check(data.read(path)))
        assert path.read_bytes() == content

    run()


@many
@given(in_memory(), st.sampled_from([None, ["neg", "pos"], [0, 1], ["0", "1", "2"]]))
def test_in_memory(rows, labels):
    checked_or_refused(lambda: data.check(rows, labels=labels))


@settings(many, max_examples=200)
@given(in_memory(), in_memory())
def test_splits(train, test):
    checked_or_refused(lambda: data.check(DatasetDict(train=train, test=test))["train"])


tags = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-", "x", "", None])
sentences = st.lists(st.lists(words | st.none(), max_size=4), min_size=1, max_size=4)


@settings(many, max_examples=400)
@given(sentences, st.data())
def test_sentences(found, more):
    tagged = [more.draw(st.lists(tags, min_size=len(s), max_size=len(s)) | st.lists(tags, max_size=4)) for s in found]
    try:
        checked = data.check_tokens(Dataset.from_dict({"tokens": found, "tags": tagged}))
    except data.DataError:
        return
    tag_names = checked.features["tags"].feature.names
    begins = any(tag and tag.startswith("B-") for sentence in tagged for tag in sentence)
    for sentence, numbers, before in zip(checked["tokens"][:], checked["tags"][:], tagged, strict=True):
        found = [tag_names[number] for number in numbers]
        if begins:  # else they are IOB1, where an entity may begin with I-
            assert found == before or {*found} - {*before}
        assert [tag[1:] for tag in found] == [tag[1:] for tag in before]
        assert all(tag[:1] != "I" or last[1:] == tag[1:] for last, tag in itertools.pairwise(["O", *found]))
        assert len(sentence) == len(numbers) > 0
