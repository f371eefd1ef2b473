"""`helpers.data`: formats that people have are read as they are meant, and what cannot be is named with its rows."""

import json

import pytest
from datasets import ClassLabel, Dataset, Json, List

from helpers import data

HEAD, BODY = "text,label\n", "a good,pos\nb bad,neg\n"


def lines(*rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def talk(asked, said):
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


@pytest.fixture
def read(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return data.read(path)

    return write


def refused(function, *parts):
    with pytest.raises(data.DataError) as caught:
        function()
    for part in parts:
        assert part in str(caught.value)


# ---- Tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("r.csv", "sep=;\r\ntext;label\r\na, b;pos\r\nc;neg\r\n", ["a, b", "c"]),
        ("r.csv", '"sep=,"\r\ntext,label\r\na,pos\r\nc,neg\r\n', ["a", "c"]),
        ("r.csv", "text;label;x,y\na;pos;1\nc;neg;2\n", ["a", "c"]),
        ("r.csv", "text\tlabel\na, b\tpos\nc\tneg\n", ["a, b", "c"]),
        ("r.csv", "text|label\na, b|pos\nc|neg\n", ["a, b", "c"]),
        ("r.txt", "text\tlabel\na\tpos\nc\tneg\n".encode("utf-16"), ["a", "c"]),
        ("r.csv", (HEAD + "é,pos\nc,neg\n").encode("utf-16-le"), ["é", "c"]),
        ("r.csv", HEAD + '"He said \\"hi, you\\"",pos\n"C:\\\\new \\n",neg\n', ['He said "hi, you"', "C:\\new \\n"]),
        ("r.csv", HEAD + '"C:\\new",pos\nx\\"y,neg\n', ["C:\\new", 'x\\"y']),
        ("r.tsv", 'text\tlabel\n"Great film\tpos\nBad\tneg\n', ['"Great film', "Bad"]),
        ("r.csv", 'text, label\n"a, b", pos\nc, neg\n', ["a, b", "c"]),
        ("r.csv", HEAD + "a , pos\nc,neg \n", ["a ", "c"]),
        ("r.csv", HEAD + '"two ""marks"", here",pos\n"c\nd",neg\n', ['two "marks", here', "c\nd"]),
    ],
)
def test_tables_as_programs_write_them(read, name, content, texts):
    rows = data.check(read(name, content))
    assert rows["text"][:] == texts
    assert rows.features["label"].names == ["neg", "pos"]
    assert rows["label"][:] == [1, 0]


@pytest.mark.parametrize("before", [0, 1200, 25_000])
@pytest.mark.parametrize("header", ["text,label", "Text,LABEL", "\ufefftext,label", "label,text", '"text", "label"'])
def test_a_header_in_the_middle_is_named_at_any_row(read, header, before):
    body = "".join(f"review {i},{'pos' if i % 2 else 'neg'}\n" for i in range(before))
    refused(
        lambda: read("r.csv", HEAD + BODY + body + header + "\nc,pos\n"),
        f"r.csv, row {before + 3}: repeats the header (text, label). Two files were joined",
    )


def test_a_header_in_rows_that_are_no_csv(read):
    rows = read("r.jsonl", lines(*[{"text": t, "label": y} for t, y in ("ax", "by", ("text", "label"))]))
    refused(lambda: data.check(rows), 'r.jsonl, row 3: label "label" is the name of its column: a header in the middle')


def test_names_that_are_there_twice(read):
    refused(lambda: read("r.csv", "text,label,text\na,b,c\n"), 'in the header "text" is there twice. Rename')
    refused(
        lambda: read("r.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n'), 'line 2: broken JSON: the name "text"'
    )


def test_nan_is_a_missing_value(read):
    content = '{"text": "a", "label": 1}\n{"text": NaN, "label": 0}\n{"text": "c", "label": NaN}\n'
    refused(
        lambda: data.check(read("r.jsonl", content)), 'row 2: the text in column "text" is missing', "row 3: the label"
    )
    infinite = '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n{"text": "c", "label": Infinity}\n'
    refused(lambda: data.check(read("r.jsonl", infinite)), "row 3: the label is missing")


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["pos", " neg", "pos "], ["neg", "pos"], [1, 0, 1]),
        (["1.0", "0.0", "1"], ["0", "1"], [1, 0, 1]),
        (["-1", "0", "1"], ["-1", "0", "1"], [0, 1, 2]),
        (["favor", "none", "none"], ["favor", "none"], [0, 1, 1]),
        (["+", "-", "-"], ["+", "-"], [0, 1, 1]),
    ],
)
def test_labels_as_they_are_meant(labels, names, numbers):
    rows = data.check(Dataset.from_dict({"text": list("abc"), "label": labels}))
    assert rows.features["label"].names == names
    assert rows["label"][:] == numbers


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["pos", "neg", "null"], 'row 3: label "null" is how a missing label is written'),
        (["pos", "neg", "None"], 'row 3: label "None" is how'),
        (["pos", "nan", "neg"], 'row 2: label "nan" is how'),
        (["pos", "neg", "-"], 'row 3: label "-" is how'),
        (["1.0", "0.0", ""], "row 3: the label is missing"),
        (["pos", "neg", "Neg"], 'row 3: label "Neg" differs from "neg" in case'),
        (["0", "1", "2", "-1"], 'row 4: label "-1" beside 0, 1, 2 marks rows that nobody labelled'),
    ],
)
def test_labels_that_are_slips(labels, message):
    rows = Dataset.from_dict({"text": list("abcd")[: len(labels)], "label": labels})
    refused(lambda: data.check(rows), message)
    assert data.check(rows, labels=labels).num_rows == len(labels) if "" not in labels else True


@pytest.mark.parametrize("hidden", [["-1", "-1"], ["", ""], ["?", "?"], [-1, -1], [None, None]])
def test_a_test_set_without_labels(hidden):
    kind = str if isinstance(hidden[0], str) else int
    train = Dataset.from_dict({"text": ["a", "b", "c"], "label": [kind(0), kind(1), kind(1)]})
    test = Dataset.from_dict({"text": ["d", "e"], "label": hidden})
    refused(lambda: data.check({"train": train, "test": test}), "test: every label is ", "published without labels")
    refused(lambda: data.check({"train": train, "test": test}, labels=["no", "yes"]), "published without labels")
    refused(lambda: data.check(test), "published without labels")
    refused(
        lambda: data.check({"train": train, "test": test.remove_columns("label")}), 'test: has no column "label". It'
    )
    refused(lambda: data.check({"train": train, "test": test.rename_column("label", "Label")}), "closest: Label")
    coded = (
        test.remove_columns("label").add_column("label", [-1, -1]).cast_column("label", ClassLabel(names=["n", "y"]))
    )
    refused(lambda: data.check({"train": train, "test": coded}), "test: every label is -1")


def test_several_labels_in_a_row(read):
    hot = read("r.csv", "id,text,toxic,threat\n7,a,1,0\n8,b,0,0\n9,c,1,1\n")
    rows = data.check(hot)
    assert rows.features["label"] == List(ClassLabel(names=["toxic", "threat"]))
    assert rows["label"][:] == [[0], [], [0, 1]]
    assert rows.column_names == ["id", "text", "label"]
    assert data.label_maps(rows)["label2id"] == {"toxic": 0, "threat": 1}
    assert data.class_balance(rows)["count"].to_dict() == {"toxic": 2, "threat": 1}
    assert data.check(hot, label=["threat", "toxic"])["label"][:] == [[1], [], [0, 1]]
    refused(lambda: data.check(hot, label=["threat", "toxi"]), 'no column "toxi"', "closest: toxic")
    unscored = read("s.csv", "text,toxic,threat\na,1,0\nb,-1,-1\nc,1,1\n")
    refused(
        lambda: data.check(unscored, label=["toxic", "threat"]), 's.csv, row 2: column "toxic" holds "-1", not 0 or 1'
    )
    lists = data.check(read("r.jsonl", lines({"text": "a", "label": ["y", "x"]}, {"text": "b", "label": []})))
    assert lists.features["label"].feature.names == ["x", "y"]
    assert lists["label"][:] == [[1, 0], []]
    cells = data.check(read("g.csv", 'text,label\na,"[3, 27]"\nb,[5]\n'))
    assert cells["label"][:] == [[0, 2], [1]]
    missing = read("m.jsonl", lines({"text": "a", "label": ["x"]}, {"text": "b", "label": None}))
    refused(lambda: data.check(missing), "m.jsonl, row 2: the label is missing")
    assert set(
        data.split(data.check(Dataset.from_dict({"text": list("abcdefghij"), "label": [["x"], ["y"]] * 5})))
    ) == {
        "train",
        "validation",
        "test",
    }


# ---- Words and tags --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["B-PER", "E-PER", "O", "S-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["B-PER", "L-PER", "O", "U-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["B-PER", "M-PER", "E-PER", "S-LOC"], ["B-PER", "I-PER", "I-PER", "B-LOC"]),
        (["I-PER", "I-PER", "B-PER", "I-LOC"], ["B-PER", "I-PER", "B-PER", "B-LOC"]),
        (["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
    ],
)
def test_schemes_of_tags_become_bio(found, expected):
    rows = data.check_tokens(Dataset.from_dict({"tokens": [list("abcd")], "tags": [found]}))
    names = rows.features["tags"].feature.names
    assert [names[number] for number in rows["tags"][0]] == expected
    assert names[0] == "O" or "O" not in names
    again = data.check_tokens(rows)
    assert again["tags"][:] == rows["tags"][:]
    numbers = Dataset.from_dict({"tokens": [list("abcd")], "tags": [[sorted({*found}).index(tag) for tag in found]]})
    coded = data.check_tokens(numbers, labels=sorted({*found}))
    names = coded.features["tags"].feature.names
    assert [names[number] for number in coded["tags"][0]] == expected


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["B-PER", "O", "O", "S-LOC"], 'row 2: tag "B-PER" is not followed by one of the same entity. End it with E-X'),
        (["O", "E-PER", "O", "S-LOC"], 'row 2: tag "E-PER" follows "O"'),
        (["B-PER", "E-LOC", "O", "O"], 'row 2: tag "E-LOC" follows "B-PER"'),
        (["B-PER", "O", "I-PER", "O"], 'row 2: tag "I-PER" follows "O"'),
    ],
)
def test_tags_that_their_scheme_does_not_allow(found, message):
    first = ["S-X", "O", "O", "O"] if {"S-LOC", "E-LOC"} & {*found} else ["B-X", "O", "O", "O"]
    rows = Dataset.from_dict({"tokens": [list("abcd")] * 2, "tags": [first, found]})
    refused(lambda: data.check_tokens(rows), message)


def test_columns_of_words_and_tags(read):
    content = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\n"
    for name in ("r.conll", "r.txt", "r.iob2"):
        rows = read(name, content.replace("\n", "\r\n") if name == "r.txt" else content)
        assert rows["tokens"][:] == [["EU", "rejects"], ["Peter"]]
        assert rows["tags"][:] == [["B-ORG", "O"], ["B-PER"]]
        assert rows["column 3"][:] == [["B-NP", "B-VP"], ["B-NP"]]
    numbered = "#\thttp://x [2009]\n1\tFrau Schartau\tB-PER\tO\n2\tsagte\tO\tO\n\n#\thttp://y\n1\tBonn\tB-LOC\tO\n"
    rows = data.check_tokens(read("g.tsv", numbered), tags="column 2")
    assert rows["tokens"][:] == [["Frau Schartau", "sagte"], ["Bonn"]]
    assert rows.features["column 2"].feature.names == ["O", "B-LOC", "B-PER"]
    assert read("h.conll", "# O\nAda B-PER\n")["tokens"][:] == [["#", "Ada"]]
    refused(lambda: read("b.conll", "Ada B-PER\nslept\n"), 'b.conll, line 2: has 1 columns ("slept")')
    lists = read("l.csv", "tokens,tags\n\"['it', \"\"'s\"\"]\",\"['O', 'O']\"\n\"['Ada']\",['B-PER']\n")
    assert data.check_tokens(lists)["tokens"][:] == [["it", "'s"], ["Ada"]]
    numpy = read("n.csv", "tokens,tags\n\"['Ada' 'slept']\",\"['B-PER' 'O']\"\n")
    refused(lambda: data.check_tokens(numpy), 'column "tokens" holds string')


# ---- JSON ------------------------------------------------------------------------------------------

ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Boats",
            "paragraphs": [
                {
                    "context": "The boat left at noon.",
                    "qas": [
                        {"id": "1", "question": "When?", "answers": [{"text": "at noon", "answer_start": 14}] * 2},
                        {"id": "2", "question": "Who?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.json", json.dumps({"version": 1, "data": ROWS})),
        ("r.json", lines(*ROWS)),
        ("r.jsonl", json.dumps(ROWS)),
        ("r.jsonl", json.dumps(ROWS, indent=2)),
        ("r.json", json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}})),
        ("r.json", json.dumps({"0": ROWS[0], "1": ROWS[1]})),
        ("r.json", json.dumps({"columns": ["text", "label"], "index": [0, 1], "data": [["a", "x"], ["b", "y"]]})),
        ("r.json", json.dumps({"text": ["a", "b"], "label": ["x", "y"]})),
    ],
)
def test_json_in_other_shapes(read, name, content):
    assert read(name, content).to_list() == ROWS


@pytest.mark.parametrize(("name", "indent"), [("r.json", 1), ("r.json", None), ("r.jsonl", 1), ("r.jsonl", None)])
def test_squad_is_read_and_unanswerable_questions_are_numbered(read, name, indent):
    rows = read(name, json.dumps(SQUAD, indent=indent))
    assert rows.column_names == ["id", "title", "context", "question", "answers"]
    assert rows[0]["answers"] == {"text": ["at noon"] * 2, "answer_start": [14, 14]}
    for answer in ("answers", "answers.text"):
        refused(
            lambda answer=answer: data.to_messages(rows, prompt="{context} {question}", answer=answer),
            f'{name}, row 2: the text in column "answers" is missing (null). This question has no answer',
        )
    answered = rows.select([0])
    assert data.to_messages(answered)[0]["messages"] == talk("The boat left at noon.\nWhen?", "at noon")
    made = data.to_messages(answered, prompt="{context} {question}", answer="answers.text")
    assert made[0]["messages"] == talk("The boat left at noon. When?", "at noon")
    broken = {"data": [{"title": "t", "paragraphs": [{"context": "c"}]}]}
    refused(
        lambda: read("b.json", json.dumps(broken)), "b.json: looks like SQuAD's own file and is not: KeyError: 'qas'"
    )


def test_objects_stay_as_they_are_in_the_file(read, monkeypatch):
    rows = [{"x": {"b": 700, "a": 1}}, {"x": {"a": 0.5, "b": "noon"}}, {"x": {"c": None}}, {"x": None}]
    for size in (1, 2, 10_000):
        monkeypatch.setattr(data, "BATCH", size)
        found = read("r.jsonl", lines(*rows))
        assert found.features["x"] == Json()
        assert list(map(json.dumps, found.to_list())) == list(map(json.dumps, rows))


# ---- Conversations ---------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1.5, "a": None}}}
CALLED = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "r", "tool_call_id": "1"},
    {"role": "assistant", "content": "b"},
]
OTHER = {"type": "function", "function": {"name": "g", "arguments": {"time": "noon"}}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, talk("a", "b")),
        ({"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, talk("a", "b")),
        ({"conversations": talk("a", "b")}, talk("a", "b")),
        ({"conversations": talk("a", "b"), "system": "S"}, [{"role": "system", "content": "S"}, *talk("a", "b")]),
        (
            {"messages": [{"role": "developer", "content": "S"}, *talk("a", "b")]},
            [{"role": "system", "content": "S"}, *talk("a", "b")],
        ),
        ({"messages": talk([{"type": "text", "text": "x"}, {"type": "text", "text": "y"}], "b")}, talk("x\ny", "b")),
        ({"instruction": "i", "input": "", "output": "o"}, talk("i", "o")),
        (
            {"instruction": "i", "input": None, "output": "o", "system": "S"},
            [{"role": "system", "content": "S"}, *talk("i", "o")],
        ),
        (
            {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]]},
            [*talk("q", "a"), *talk("i\nx", "o")],
        ),
        ({"prompt": "p", "completion": "c"}, talk("p", "c")),
    ],
)
def test_conversations_in_other_forms(read, row, expected):
    for name, content in (("r.jsonl", lines(row)), ("r.json", json.dumps([row]))):
        assert data.to_messages(read(name, content)).to_list() == [{"messages": expected}]
    if not isinstance(row.get("messages", [{}])[0].get("content"), list):  # Arrow has no column of texts and lists
        assert data.to_messages(Dataset.from_list([row]))[0]["messages"] == expected


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
            "the user first",
        ),
        (
            talk([{"type": "image_url", "image_url": {"url": "x"}}], "b"),
            'a part of the content is "image_url", not text',
        ),
        ([*talk("a", "b")[:1], {"role": "assistant", "content": "b", "weight": 0}], "weight 0 takes an answer out"),
        (
            [*talk("a", "b")[:1], {"role": "tool", "content": "r"}, *talk("a", "b")[1:]],
            "after the calls of the assistant",
        ),
        ([{"from": "human", "value": "a"}, {"from": "function_call", "value": "{no"}], "is no JSON"),
        ([{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}], 'role "bot" is not one of'),
    ],
)
def test_conversations_that_cannot_be_read_are_named_by_row(read, messages, message):
    rows = read("r.jsonl", lines({"messages": talk("x", "y")}, {"messages": messages}))
    refused(lambda: data.to_messages(rows), "r.jsonl, row 2: ", message)


def test_calls_of_tools_stay_as_they_are(read):
    other = [CALLED[0], {"role": "assistant", "content": "", "tool_calls": [OTHER]}, *CALLED[2:]]
    rows = [{"messages": CALLED, "tools": [{"name": "f"}]}, {"messages": other}, {"messages": talk("x", "y")}]
    made = data.to_messages(read("r.jsonl", lines(*rows)))
    assert made.features == {"messages": List(Json()), "tools": Json()}
    assert made["messages"][:] == [CALLED, other, talk("x", "y")]
    assert json.dumps(made["messages"][0]) == json.dumps(CALLED)
    assert made["tools"][:] == [[{"name": "f"}], None, None]
    assert data.to_messages(made).to_list() == made.to_list()
    with_system = data.to_messages(made, system="S")["messages"][0]
    assert with_system == [{"role": "system", "content": "S"}, *CALLED]


def test_calls_of_tools_in_sharegpt_and_in_openais_old_form(read):
    row = {
        "tools": '[{"name": "f"}]',
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "b"},
        ],
    }
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    expected = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "b"},
    ]
    assert data.to_messages(read("r.jsonl", lines(row))).to_list() == [{"messages": expected, "tools": [{"name": "f"}]}]
    old = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "function_call": calls[0]["function"]},
        {"role": "function", "name": "f", "content": "3"},
        {"role": "assistant", "content": "b"},
    ]
    expected[2]["name"] = "f"
    assert data.to_messages(read("o.jsonl", lines({"messages": old})))["messages"][:] == [expected]


def test_arrow_tables_that_may_have_filled_in_arguments_are_refused():
    rows = [
        {"messages": [CALLED[0], {"role": "assistant", "content": None, "tool_calls": [call]}]}
        for call in (CALL, OTHER)
    ]
    refused(lambda: data.to_messages(Dataset.from_list(rows)), "rows 1, 2: the arguments of a tool call hold null")
    assert data.to_messages(Dataset.from_list(rows[1:]))["messages"][0][1]["tool_calls"] == [OTHER]
