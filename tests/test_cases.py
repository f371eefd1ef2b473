"""One table of files as people have them: what `helpers.data` makes of each, a project made of it has in its data/.

An answer is a row that both have, or a part of the one sentence that both say. Where a project cannot do what `data`
can, the line ends in what it says.
"""

import gzip
import json
import re

import peft
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat_templates import FAMILIES, RANDOM, RANDOM_LETTERS, TURNS, chats, conversations, of, shapes, template_of
from test_chat_templates import many as many_templates
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed
from writing import talk

from helpers import data, env, new, preflight, text


def lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def table(good="good {}", bad="bad {}", one="pos", other="neg", sep=",", end="\n", header="text{}label"):
    body = "".join((good if i % 2 else bad).format(i) + sep + (one if i % 2 else other) + end for i in range(12))
    return header.format(sep) + end + body


def labelled(one, other, *more):
    return lines([{"text": f"text {i}", "label": one if i % 2 else other} for i in range(12)] + list(more))


def tagged(*tags, **more):
    return lines([{"tokens": [f"{word}{i}" for word in "abcde"[: len(tags)]], "tags": tags} | more for i in range(12)])


def columns(*words):
    return "".join("".join(word.format(i) + "\n" for word in words) + "\n" for i in range(12))


def talks(*messages, **more):
    return lines([{"messages": [message(i) for message in messages], **more} for i in range(12)])


def user(i):
    return {"role": "user", "content": f"question {i}"}


def said(i):
    return {"role": "assistant", "content": f"answer {i}"}


def pairs(**fields):
    return lines([{name: value.replace("{}", str(i)) for name, value in fields.items()} for i in range(12)])


def cells(written):
    return "messages\n" + "".join('"' + written([user(i), said(i)]).replace('"', '""') + '"\n' for i in range(12))


def gemini(i):
    turns = (("user", f"question {i}"), ("model", f"answer {i}"))
    return {"contents": [{"role": role, "parts": [{"text": said}]} for role, said in turns]}


TALK, SYSTEM = [user(3), said(3)], {"role": "system", "content": "s"}
ASKED = [{"role": "user", "content": "q 3\nc"}, {"role": "assistant", "content": "a 3"}]
LABELS = {
    "quotes escaped": (table('"say \\"hi\\", {}"'), {}, ('say "hi", 3', "pos")),
    "quotes doubled": (table('"say ""hi"", {}"'), {}, ('say "hi", 3', "pos")),
    "lines in a cell": (table('"one\ntwo {}"'), {}, ("one\ntwo 3", "pos")),
    "lines of Windows": (table('"one\r\ntwo {}"', end="\r\n"), {}, ("one\r\ntwo 3", "pos")),
    "lines of an old Mac": (table(end="\r"), {}, ("good 3", "pos")),
    "a mark at the start": ("\ufeff" + table(header='"text"{}"label"'), {}, ("good 3", "pos")),
    "Excel's separator": ("sep=;\r\n" + table("a, b {}", sep=";", end="\r\n"), {}, ("a, b 3", "pos")),
    "Excel's UTF-16": (("sep=\t\r\n" + table(sep="\t")).encode("utf-16"), {}, ("good 3", "pos")),
    "Latin-1": (table("größer {}").encode("cp1252"), {}, "is not UTF-8. If the file is cp1252"),
    "neither UTF-8 nor Latin-1": (table("gr\xf6\x81er {}").encode("latin-1"), {}, "Nor is it cp1252. To go on with"),
    "tabs and no header": (
        "".join(f"{i}\tgood {i}\tpos\n" for i in range(12)),
        {},
        "such as 'text\\tlabel\\tcolumn 3'",
    ),
    "a class of one row": (
        table() + "x,odd\n",
        {},
        ("good 3", "pos"),
        'class "odd" has 1 different text, and 3 splits',
    ),
    "an Excel file": (
        b"PK\x03\x04\x14\x00\x06\x00\x00\xff" * 9,
        {},
        "is a zip or Excel file. Unpack it, save it as CSV",
    ),
    "a last column E-Mail": (
        table(header="text{0}label{0}E-Mail", end=",x@y\n").replace("l,x@y", "l"),
        {},
        ("good 3", "pos"),
    ),
    "the same name twice": (
        table(header="text{0}label{0}label", end=",1\n").replace("l,1", "l"),
        {},
        '"label" is there twice',
    ),
    "rows of commas": (table() + ",\n", {}, "row 13: the label is missing"),
    "a text that nobody sees": (table() + "\u200b\u00a0,pos\n", {}, 'row 13: the text in column "text" is empty'),
    "spaces around a label": (table(one=" pos", other="neg\u00a0"), {}, ("bad 2", "neg")),
    "a label with a sign that nobody sees": (
        table() + "x,pos\u200b\n",
        {},
        'differs from "pos" in case or unseen signs',
    ),
    "an accent in two ways": (table(one="caf\u00e9") + "x,cafe\u0301\n", {}, "differs from"),
    "labels of emojis": (table(one="😀", other="😡"), {}, ("good 3", "😀")),
    "whole numbers as floats": (table(one="1.0", other="0"), {}, ("good 3", "1")),
    "words for numbers": (table(one="2", other="1"), {"labels": ["no", "yes"]}, ("good 3", "yes")),
    "a name given twice": (table(), {"labels": ["pos", "neg", "pos"]}, 'labels=[...] has "pos" twice'),
    "a gzip file": (gzip.compress(table().encode()), {}, "is a gzip file. Unpack it"),
    "a line above the header": ("# made by x\n" + table(), {}, "has 2 cells where the header has 1, # made by x"),
    "a mark in front of a name": (table(header="\u200ftext{}\ufefflabel"), {}, ("good 3", "pos")),
    "an empty column": (table(header="text{0}label{0}note", end=",\n").replace("note,", "note"), {}, ("good 3", "pos")),
    "NUL in a text": (table("a\0b {}"), {}, ("a\0b 3", "pos")),
    "NUL in a label": (table() + "x,pos\0\n", {}, 'differs from "pos" in case or unseen signs'),
    "other zeros": (table(one="1", other="0") + "x,01\n", {}, 'row 13: label "01" is "1" with other zeros or signs'),
    "what MySQL writes for nothing": (table() + "x,\\N\n", {}, 'label "\\N" is how a missing label is written'),
    "right to left": (table("نص {}", one="إيجابي", other="سلبي"), {}, ("نص 3", "إيجابي")),
    "emojis of two parts": (table(one="👍🏽", other="👍"), {}, ("good 3", "👍🏽")),
    "a very long row": (table() + "w " * 50_000 + ",pos\n", {}, ("good 3", "pos")),
    "several columns of 0 and 1": (
        "text,a,b\n" + "".join(f"t{i},{i % 2},{i % 3 // 2}\n" for i in range(12)),
        {"label": ["a", "b"]},
        ("t5", ["a", "b"]),
    ),
}
JSON_LABELS = {
    "booleans": (labelled(True, False), {}, ("text 3", "true")),
    "floats": (labelled(1.0, 0.0), {}, ("text 3", "1")),
    "1 and 1.0": (labelled(1, 0, {"text": "x", "label": 1.0}, {"text": "y", "label": 0.0}), {}, ("x", "1")),
    "1 and true": (labelled(1, 0, {"text": "x", "label": True}), {}, "holds true or false (True), which does not fit"),
    "two files joined": (labelled("a", "b") + '\n\ufeff{"text": "x", "label": "a"}', {}, ("x", "a")),
    "NUL at the end": (labelled("a", "b") + "\n" + "\0" * 9, {}, "line 13: broken JSON"),
    "half an emoji": (labelled("a", "b") + '\n{"text": "\\ud83d", "label": "a"}', {}, "row 13: column \"text\" holds"),
    "numbers and a text": (labelled(1, 0, {"text": "x", "label": "1"}), {}, "holds text ('1'), which does not fit"),
    "NaN": (labelled("a", "b") + '\n{"text": "x", "label": NaN}', {}, "row 13: the label is missing"),
    "infinity": (labelled(1, 0) + '\n{"text": "x", "label": -Infinity}', {}, "row 13: the label is missing"),
    "a name twice in an object": (labelled("a", "b") + '\n{"text": "x", "text": "y"}', {}, '"text" is twice'),
    "objects of many kinds": (
        lines([{"text": f"t{i}", "label": "ab"[i % 2], "meta": {"ab"[i % 2]: i}} for i in range(12)]),
        {},
        ("t3", "b"),
    ),
    "an object for a text": (lines([{"text": {"en": "a"}, "label": "a"}] * 12), {}, '"text" holds objects, not text'),
    "a line separator in a text": (labelled("a", "b", {"text": "x\u2028y", "label": "a"}), {}, ("x\u2028y", "a")),
    "empty lines and a mark": (
        "\ufeff\n" + labelled("a", "b").replace("\n", "\r\n\r\n"), {}, ("text 3", "a")
    ),
    "lists with too few texts": (lines([{"text": t, "label": [t]} for t in "ab"]), {}, ("a", ["a"]), "has 2 different"),
}  # fmt: skip
WORDS = {
    "BIOES": (tagged("B-PER", "E-PER", "O", "S-LOC"), {}, ("a3", ["B-PER", "I-PER", "O", "B-LOC"])),
    "BMEWO": (tagged("B-PER", "M-PER", "E-PER", "W-LOC"), {}, ("a3", ["B-PER", "I-PER", "I-PER", "B-LOC"])),
    "BILOU": (tagged("B-PER", "L-PER", "O", "U-LOC"), {}, ("a3", ["B-PER", "I-PER", "O", "B-LOC"])),
    "IOB1": (tagged("I-PER", "B-PER", "O", "I-LOC"), {}, ("a3", ["B-PER", "B-PER", "O", "B-LOC"])),
    "IO": (tagged("I-PER", "I-PER", "O", "I-LOC"), {}, ("a3", ["B-PER", "I-PER", "O", "B-LOC"])),
    "swapped": (tagged("PER-B", "PER-I", "O"), {}, 'tag "PER-B" is not a BIO tag. Write B-PER'),
    "numbers": (tagged(1, 2, 0), {"labels": ["O", "B-X", "I-X", "B-Y"]}, ("a3", ["B-X", "I-X", "O"])),
    "numbers without names": (tagged(1, 2, 0), {}, 'tag "2" is not a BIO tag'),
    "parts of speech": (
        tagged("NOUN", "VERB"),
        {"labels": ["NOUN", "VERB"]},
        ("a3", ["NOUN", "VERB"]),
        "labels has NOUN, and entities are scored by the tags O, B-X and I-X only",
    ),
    "a blank in a word": (tagged("B-X", "O").replace('"a', '"New York'), {}, ("New York3", ["B-X", "O"])),
    "a word that nobody sees": (re.sub('"b[0-9]+', '"\u200b', tagged("B-X", "O")), {}, "a word is empty or null"),
    "kinds alone": (tagged("LOC", "O"), {}, 'tag "LOC" is not a BIO tag. Use O, B-X and I-X'),
    "too few sentences": (
        lines([{"tokens": [word], "tags": ["B-X"]} for word in "ab"]), {}, ("a", ["B-X"]), "has 2 different texts"
    ),
}  # fmt: skip
COLUMNS = {
    "tabs of Windows": (columns("Ada{}\tB-X", "slept\tO").replace("\n", "\r\n"), {}, ("Ada3", ["B-X", "O"])),
    "two words in one": (
        columns("# text = x", "1-2\tdu{}\tO", "1\tde{}\tO", "2\tle\tB-X"), {}, ("de3", ["O", "B-X"])
    ),
    "a word that is a score": (columns("1-2 CD O", "Ada{} NN B-X"), {}, ("1-2", ["O", "B-X"])),
    "a word of a wide blank": (columns("Ada{}\tB-X", "\u3000\tO"), {}, "2: has 2 columns, one of them empty"),
    "a sentence that is broken": (columns("Ada{} B-X", "slept"), {}, 'line 2: has 1 columns ("slept")'),
}  # fmt: skip
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
RESULT = {"role": "tool", "content": "2"}
TALKS = {
    "ShareGPT": (
        lines([{"conversations": [{"from": "human", "value": "question 3"}, {"from": "gpt", "value": "answer 3"}]}] * 2)
        + "\n" + talks(user, said).replace("messages", "conversations"), {}, TALK,
    ),
    "calls of tools": (
        talks(user, lambda i: CALL, lambda i: RESULT, said), {}, [TALK[0], CALL, RESULT, TALK[1]],
        "t.jsonl, rows 1, 2, 3, 4, 5 and 7 more: calls tools",
    ),
    "roles in capitals": (talks(user, said).replace('"user"', '"Human"').replace('"assistant"', '"GPT"'), {}, TALK),
    "empty lists of tools": (talks(user, lambda i: said(i) | {"tool_calls": []}, tools=[]), {}, TALK),
    "tools": (talks(user, said, tools=[{"name": "f"}]), {}, TALK, "is told of some, which a project's train.py does"),
    "thoughts": (talks(user, lambda i: said(i) | {"thinking": "t"}), {}, [TALK[0], TALK[1] | {"thinking": "t"}]),
    "an answer that is not to count": (talks(user, lambda i: said(i) | {"train": False}), {}, "weight 0 takes"),
    "an answer that is missing": (talks(user, said, user), {}, "user and assistant do not take turns"),
    "TRL": (lines([{"prompt": [user(i)], "completion": [said(i)]} for i in range(12)]), {}, TALK),
    "TRL's preferences": (
        lines([{"prompt": [user(i)], "chosen": [said(i)], "rejected": [said(0)]} for i in range(12)]),
        {"prompt": "prompt", "answer": "chosen"}, TALK,
    ),
    "Gemini": (
        lines([gemini(i) | {"systemInstruction": {"parts": [{"text": "s"}]}} for i in range(12)]), {}, [SYSTEM, *TALK],
    ),
    "a call of Gemini's": (
        lines([gemini(i) for i in range(12)]).replace('{"text": "answer', '{"functionCall": "'), {},
        'a part of the content is "functionCall", not text',
    ),
    "a prompt of the system": (pairs(system_prompt="s", instruction="q {}\nc", output="a {}"), {}, [SYSTEM, *ASKED]),
    "a system beside named columns": (
        pairs(system="s", q="q {}\nc", a="a {}"), {"prompt": "q", "answer": "a"}, [SYSTEM, *ASKED]
    ),
    "a system beside messages": (talks(user, said, system_prompt="s"), {}, [SYSTEM, *TALK]),
    "two of the system": (talks(lambda i: SYSTEM, user, said, system="t"), {}, 'is a system message already, "s"'),
    "a column that would be lost": (
        pairs(prompt="q {}", context="c", response="a"), {}, 'has prompt, response, and context too. Say what belongs',
    ),
    "tools beside a prompt": (
        pairs(prompt="q {}\nc", response="a {}").replace("}", ', "tools": [{"name": "f"}]}'), {}, ASKED,
        "is told of some",
    ),
    "an answer that nobody sees": (talks(user, lambda i: said(i) | {"content": "\u200d"}), {}, "is empty or null"),
    "Dolly": (pairs(instruction="q {}", context="c", response="a {}", category="x"), {}, ASKED),
    "Alpaca": (pairs(instruction="q {}\nc", input="", output="a {}"), {}, ASKED),
    "history without turns": (pairs(instruction="q {}\nc", output="a {}").replace("}", ', "history": []}'), {}, ASKED),
    "history of one": (
        pairs(instruction="q {}", output="a").replace("}", ', "history": [["x"]]}'),
        {},
        "history holds",
    ),
    "named columns": (pairs(q="q {}", p="c", a="a {}"), {"prompt": "{q}\n{p}", "answer": "a"}, ASKED),
    "a column of numbers": (lines([{"q": i, "a": "x"} for i in range(12)]), {"prompt": "q", "answer": "a"}, "int64"),
}  # fmt: skip
CELLS = {  # messages as text in a cell
    "JSON": (cells(json.dumps), {}, TALK),
    "Python": (cells(repr), {}, TALK),
    "half of it": (cells(json.dumps) + '"[{""role"": "\n', {}, 'row 13: column "messages" holds no list of'),
}
KINDS = {
    "r.csv": ("classification", LABELS), "r.jsonl": ("classification", JSON_LABELS), "w.jsonl": ("tokens", WORDS),
    "w.conll": ("tokens", COLUMNS), "t.jsonl": ("generation", TALKS),
    "t.csv": ("generation", CELLS),
}  # fmt: skip
CASES = [(task, file, name) for file, (task, cases) in KINDS.items() for name in cases]


@pytest.fixture(scope="module")
def scripts():
    """The train.py of each task, which reads the rows of a project."""
    return {task: new._script(new.TEMPLATES / task / "train.py") for task in new.KINDS}


def of_helpers(task, path, given):
    rows = data.read(path)
    if task == "generation":
        return data.to_messages(rows, **given)["messages"][:]
    if task == "tokens":
        rows = data.check_tokens(rows, **given)
        names = rows.features["tags"].feature.names
        return [
            (words[0], [names[tag] for tag in tags]) for words, tags in zip(rows["tokens"], rows["tags"], strict=True)
        ]
    rows = data.check(rows, **given)
    feature = rows.features["label"]
    names = getattr(feature, "feature", feature).names
    labels = [names[one] if isinstance(one, int) else [names[n] for n in one] for one in rows["label"]]
    return list(zip(rows["text"], labels, strict=True))


def of_a_project(task, path, given, train, monkeypatch):
    """What its own train.py reads; the model and what it needs are tested elsewhere."""

    def configured(folder, source, method, fixed, settings):
        (folder / "config.yaml").write_text(new._with_settings((folder / "config.yaml").read_text(), fixed))
        monkeypatch.setitem(train.read_config.__globals__, "HERE", folder)
        read.append(train.read_config())
        for part in new.PARTS:
            read.extend(train.read_part(part, read[0]))
        return read[0], "", []

    read = []
    monkeypatch.setattr(new, "_configured", configured)
    new.project(task, path.parent / "project", data=path, **given)
    text, answer = {"classification": ("text", "label"), "tokens": ("tokens", "tags")}.get(task, (None, "messages"))
    rows = [row[answer] if text is None else (row[text], row[answer]) for row in read[1:]]
    return [(row[0][0], row[1]) for row in rows] if task == "tokens" else rows


def answer(call, refusal):
    try:
        return sorted(map(json.dumps, call()))
    except refusal as error:
        return str(error)


@pytest.mark.parametrize(("task", "file", "name"), CASES, ids=[f"{file} {name}" for _, file, name in CASES])
def test_a_project_says_what_helpers_say(task, file, name, scripts, tmp_path, monkeypatch):
    content, given, expected, *refusal = KINDS[file][1][name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = answer(lambda: of_helpers(task, path, given), data.DataError)
    project = answer(lambda: of_a_project(task, path, given, scripts[task], monkeypatch), ValueError)
    if isinstance(expected, str):
        assert expected in found
    else:
        assert json.dumps(expected) in found, found
    if refusal:
        assert refusal[0] in project
    else:
        assert project == found
    assert (tmp_path / "project").exists() == isinstance(project, list)


@pytest.mark.parametrize("answers", ["all", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_project_learns_the_tokens_that_helpers_mark(family, answers, scripts):
    tokenizer, example = of(family), scripts["generation"].chat_example
    found = answer(lambda: text.tokenize_chat(chats(TURNS), tokenizer, answers=answers).to_list(), data.DataError)
    project = answer(lambda: [example(TURNS, tokenizer, only_last=answers == "last")], ValueError)
    if isinstance(found, str):
        assert "Set data.answers: last" in project
    else:
        wanted = json.loads(found[0])
        assert json.loads(project[0]) == {name: wanted[name] for name in ("input_ids", "attention_mask", "labels")}


@settings(many_templates, max_examples=60)
@given(shapes, conversations, st.sampled_from([RANDOM, RANDOM_LETTERS]), st.booleans())
def test_a_project_learns_what_helpers_mark_with_random_templates(scripts, shape, drawn, tokenizer, only_last):
    system, contents = drawn
    messages = talk(*contents[: len(contents) // 2 * 2], system=system)
    tokenizer.chat_template = template_of(shape)
    special = set(tokenizer.all_special_ids)
    made = text._chat_examples(tokenizer, special, "last" if only_last else "all", {"messages": [messages]})
    [(_, example, problem)] = made
    project = answer(lambda: [scripts["generation"].chat_example(messages, tokenizer, only_last)], ValueError)
    if problem:
        assert isinstance(project, str)
    else:
        wanted = {name: example[name] for name in ("input_ids", "attention_mask", "labels")}
        assert json.loads(project[0]) == wanted


def test_a_setting_that_cannot_work_is_named_before_the_training(scripts):
    model = {"pretrained_model_name_or_path": env.model_path("tiny-encoder")}
    for task in ("classification", "tokens"):
        train, data = scripts[task], {"labels": ["O", "B-X"]}
        given = {"model": model, "data": data, "training": {"output_dir": "x", "optim": "adamw_torch_xla"}}
        with pytest.raises(ValueError, match=r"optim is adamw_torch_xla\. .*torch_xla"):
            train.training_arguments(given)
        for name in ("target_modules", "modules_to_save"):
            given["peft"] = {"peft_type": "LORA", "target_modules": ["Wqkv"]} | {name: ["Wqkv", "q_proj"]}
            with pytest.raises(ValueError, match=f"{name} has q_proj, and the model has no layer"):
                train.peft_config(given)


HEADS = {  # settings of LoRA: does `preflight` say "frozen head", and what says a project, which knows its own task
    "as it should be": ("SEQ_CLS", [], False, ""),
    "the head as a target": ("SEQ_CLS", ["classifier"], False, ""),
    "no kind of task": (None, ["classifier"], True, ""),
    "another kind": ("FEATURE_EXTRACTION", [], True, "task_type is FEATURE_EXTRACTION"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_new_head_is_saved_with_the_adapter(name, scripts, tmp_path):
    task, more, is_lost, refusal = HEADS[name]
    train, sizes = scripts["classification"], dict(num_hidden_layers=1, hidden_size=32, num_attention_heads=2)
    model = BertForSequenceClassification(BertConfig(vocab_size=50, intermediate_size=32, num_labels=3, **sizes))
    rows = [{"input_ids": [1, 2 + i % 40], "attention_mask": [1, 1], "labels": i % 3} for i in range(60)]
    arguments = TrainingArguments(str(tmp_path), learning_rate=3e-3, report_to="none", use_cpu=True)
    lora = peft.LoraConfig(r=4, task_type=task, target_modules=["query", *more])
    found = preflight.check(peft.get_peft_model(model, lora), None, Dataset.from_list(rows), arguments)
    assert ("frozen head" in str(found)) == is_lost

    config = {"model": {train.MODEL[0]: env.model_path("tiny-encoder")}, "data": {"labels": ["a", "b"]}}
    lora = {"peft_type": "LORA", "r": 4, "task_type": task, "target_modules": ["Wqkv", *more]}
    config |= {"training": {}, "peft": lora}
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            train.load_model(config)
        return
    made = train.load_model(config)
    head = made.get_base_model().classifier.modules_to_save["default"]
    torch.nn.init.normal_(head.weight)
    made.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(1)
    again = train.load_model(config, trained=str(tmp_path / "adapter"))
    assert again.get_base_model().classifier.modules_to_save["default"].weight.equal(head.weight)


@pytest.mark.usefixtures("one_thread")
def test_a_training_that_had_ended_makes_no_more_step(scripts, tmp_path):
    """`Trainer` would make one more: it looks at the number of steps after each only."""
    rows = [{"input_ids": [1, 2 + i % 7], "labels": i % 2} for i in range(10)]
    sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    settings = dict(max_steps=3, save_steps=3, per_device_train_batch_size=2, lr_scheduler_type="constant")

    def trainer():
        set_seed(0)
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, **settings)
        return Trainer(BertForSequenceClassification(BertConfig(**sizes)), arguments, train_dataset=rows)

    first, of_trainer = trainer(), trainer()
    scripts["tokens"].go_on(first, None)
    for script in scripts.values():
        again = trainer()
        script.go_on(again, str(tmp_path / "checkpoint-3"))
        assert again.state.global_step == 3
        assert all(map(torch.equal, first.model.parameters(), again.model.parameters()))
    of_trainer.train(resume_from_checkpoint=True)
    assert of_trainer.state.global_step == 4, "transformers is mended: go_on is needed no more"
