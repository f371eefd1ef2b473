"""Thousands of malformed tables: `helpers` answers with a checked data set and its tokens, or with a DataError."""

import csv
import io
import itertools
import json
import os

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, List
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_chat_templates import CHATML, bytewise

from helpers import data, text

FACTOR = 10 if os.environ.get("RELEASE") == "1" else 1
many = settings(
    max_examples=300 * FACTOR,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TOKENIZER = bytewise("<|im_start|>", "<|im_end|>")
TOKENIZER.chat_template = CHATML

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


@st.composite
def parquet_files(draw):
    file = io.BytesIO()
    draw(in_memory()).to_parquet(file)
    return ".parquet", damaged(draw, file.getvalue())


def is_checked(rows):
    feature, labels = rows.features["label"], rows["label"][:]
    if isinstance(feature, List):  # a row may have several labels
        feature, labels = feature.feature, list(itertools.chain.from_iterable(labels))
    else:
        assert len(feature.names) >= 2
    assert isinstance(feature, ClassLabel)
    assert rows.num_rows > 0
    assert all(0 <= number < len(feature.names) for number in labels)
    assert all(one.strip() for one in rows["text"][:])
    assert text.tokenize(rows, TOKENIZER)["labels"][:] == rows["label"][:]


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


@pytest.mark.parametrize("files", [csv_files, json_files, json_lines_files, parquet_files])
def test_files(folder, files):
    @settings(many, max_examples=(40 if files is parquet_files else 250) * FACTOR)  # Parquet takes ten times as long
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


@settings(many, max_examples=100 * FACTOR)
@given(in_memory(), in_memory())
def test_splits(train, test):
    checked_or_refused(lambda: data.check(DatasetDict(train=train, test=test))["train"])


tags = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-", "x", "", None])
sentences = st.lists(st.lists(words | st.none(), max_size=4), min_size=1, max_size=4)


@settings(many, max_examples=120 * FACTOR)
@given(sentences, st.data())
def test_sentences(found, more):
    tagged = [more.draw(st.lists(tags, min_size=len(s), max_size=len(s)) | st.lists(tags, max_size=4)) for s in found]
    try:
        checked = data.check_tokens(Dataset.from_dict({"tokens": found, "tags": tagged}))
    except data.DataError:
        return
    labels = text.align_labels(checked, TOKENIZER)["labels"]
    assert [[one for one in row if one != -100] for row in labels] == checked["tags"][:]
    tag_names = checked.features["tags"].feature.names
    begins = any(tag and tag.startswith("B-") for sentence in tagged for tag in sentence)
    for sentence, numbers, before in zip(checked["tokens"][:], checked["tags"][:], tagged, strict=True):
        found = [tag_names[number] for number in numbers]
        if begins:  # else they are IOB1, where an entity may begin with I-
            assert found == before or {*found} - {*before}
        assert [tag[1:] for tag in found] == [tag[1:] for tag in before]
        assert all(tag[:1] != "I" or last[1:] == tag[1:] for last, tag in itertools.pairwise(["O", *found]))
        assert len(sentence) == len(numbers) > 0


turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "human", "x", "", None, 3]),
        "from": st.sampled_from(["human", "gpt", "system", "observation", "function_call", "x"]),
        "content": st.one_of(
            words, st.none(), st.lists(st.fixed_dictionaries({"type": words, "text": words}), max_size=2)
        ),
        "value": st.one_of(words, st.none(), st.just('{"name": "f", "arguments": {"x": 1}}'), values),
        "tool_calls": st.lists(st.dictionaries(names, values, max_size=2), max_size=2) | values,
        "weight": st.integers(0, 1),
    },
)
good_turns = st.lists(st.tuples(words, words), min_size=1, max_size=2).map(
    lambda pairs: [
        turn
        for asked, said in pairs
        for turn in ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
    ]
)
chat_rows = st.fixed_dictionaries(
    {}, optional={"messages": good_turns | st.lists(turns, max_size=4) | values, "tools": values, "system": scalars}
)
sharegpt_rows = st.fixed_dictionaries({"conversations": st.lists(turns, max_size=3) | good_turns})
gemini_rows = st.fixed_dictionaries(
    {"contents": good_turns.map(lambda turns: [{"role": t["role"], "parts": [{"text": t["content"]}]} for t in turns])},
    optional={"systemInstruction": values, "system_prompt": scalars},
)
trl_rows = st.fixed_dictionaries(
    {
        "prompt": good_turns.map(lambda turns: turns[:-1]),
        "completion": good_turns.map(lambda turns: turns[-1:]) | values,
    },
    optional={"system": scalars, "tools": values},
)
cell_rows = st.fixed_dictionaries({"messages": (good_turns | st.lists(turns, max_size=3) | values).map(json.dumps)})
alpaca_rows = st.fixed_dictionaries(
    {"instruction": strange, "output": strange},
    optional={"input": scalars, "history": values, "system_prompt": scalars},
)
answers = st.fixed_dictionaries({"text": strange, "answer_start": st.integers(0, 9)})
questions = st.fixed_dictionaries({"question": strange}, optional={"answers": st.lists(answers, max_size=2) | values})
squad = st.fixed_dictionaries(
    {
        "data": st.lists(
            st.fixed_dictionaries(
                {
                    "paragraphs": st.lists(
                        st.fixed_dictionaries({"context": strange, "qas": st.lists(questions, max_size=2) | values}),
                        max_size=2,
                    )
                }
            )
            | values,
            max_size=2,
        )
    }
)


TALKS = {"chat": chat_rows, "sharegpt": sharegpt_rows, "alpaca": alpaca_rows, "squad": squad}
TALKS |= {"gemini": gemini_rows, "trl": trl_rows, "cells": cell_rows}


@pytest.mark.parametrize("kind", TALKS)
def test_conversations(folder, kind):
    rows = TALKS[kind]
    documents = squad if kind == "squad" else st.lists(rows, max_size=4)

    @settings(many, max_examples=50 * FACTOR)
    @given(documents, st.sampled_from([".json", ".jsonl"]), st.sampled_from([None, "S"]))
    def run(found, suffix, system):
        path = folder / f"talks{suffix}"
        lines = [found] if kind == "squad" else found
        if kind == "cells" and suffix == ".json":  # the other kind of file that has text in its cells
            path = folder / "talks.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([["messages"], *([row["messages"]] for row in found)])
        elif suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, lines)))
        else:
            path.write_text(json.dumps(found))
        try:
            talks = data.to_messages(data.read(path), system=system)
        except data.DataError:
            return
        for row in talks:
            assert row["messages"][-1]["role"] == "assistant"
            assert [turn["role"] for turn in row["messages"]].count("system") <= 1
            for turn in row["messages"]:
                assert turn["role"] in data.ROLES
                assert (turn["content"] or "").strip() or turn["tool_calls"]
        assert data.to_messages(talks).to_list() == talks.to_list(), "the house's own form stays as it is"
        try:
            examples = text.tokenize_chat(talks, TOKENIZER)
        except data.DataError:
            return
        assert examples.num_rows == talks.num_rows
        assert all({*labels} > {-100} for labels in examples["labels"])

    run()


columns = st.lists(
    st.sampled_from(["Ada", "O", "B-PER", "I-PER", "E-PER", "S-X", "#", "1", "é", "\u00a0", ""]), max_size=3
)
tagged_files = st.lists(columns.map(" ".join) | columns.map("\t".join) | st.just("Ada B-PER") | st.just(""), max_size=6)


@settings(many, max_examples=200 * FACTOR)
@given(tagged_files, st.sampled_from([".conll", ".txt", ".tsv"]))
def test_columns_of_words_and_tags(folder, lines, suffix):
    path = folder / f"words{suffix}"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        checked = data.check_tokens(data.read(path))
    except data.DataError:
        return
    tag_names = checked.features["tags"].feature.names
    for sentence, numbers in zip(checked["tokens"][:], checked["tags"][:], strict=True):
        assert len(sentence) == len(numbers) > 0
        assert all(tag_names[number][:2] in ("O", "B-", "I-") for number in numbers)


@settings(many, max_examples=150 * FACTOR)
@given(st.lists(st.dictionaries(names, values, max_size=3), min_size=1, max_size=4))
def test_objects_come_back_as_they_were(folder, found):
    """Never a field that was not in the file, whatever other rows have."""
    path = folder / "objects.jsonl"
    path.write_text("\n".join(json.dumps({"x": one}) for one in found))
    try:
        rows = data.read(path)
    except data.DataError:
        return
    kept = json.loads(json.dumps(found), parse_constant=lambda name: None if name == "NaN" else float(name))
    assert [row["x"] for row in rows] == kept
