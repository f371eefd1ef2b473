"""`helpers.text`: which tokens count, that no answer is cut, and what errors say."""

import json

import numpy as np
import pytest
import torch
from corpus import train_writing_tokenizer
from datasets import Dataset, DatasetDict, are_progress_bars_disabled
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)
from writing import TEXTS, refused, talk, tiny_llama, tiny_t5, with_template

from helpers import data, metrics, text

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def trained():
    return train_writing_tokenizer(TEXTS, 400, 256), train_writing_tokenizer(TEXTS, 400, 256, ends=True)


@pytest.fixture
def tokenizer(trained):
    return with_template(trained[0], trained[0].chat_template)


@pytest.fixture
def ending(trained):
    return trained[1]


def chats(*conversations):
    return Dataset.from_dict({"messages": list(conversations)})


def contents(rows):
    return [[message["content"] for message in messages] for messages in rows["messages"]]


def counted(example):
    return [label for label in example["labels"] if label != -100]


def table(**columns):
    return Dataset.from_dict(columns)


# ---- tokenise --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words():
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "ada", "ate", "##n", "in", "rome", "good", "##s", "bad"]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", model_input_names=inputs)


def test_tokenize(words, tmp_path):
    data.check(table(text=["good", "bad rome", "goods in rome"], label=["p", "n", "p"], extra=[1, 2, 3])).save_to_disk(
        tmp_path
    )
    bars, before = are_progress_bars_disabled(), {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    rows = data.read(tmp_path)
    examples = text.tokenize(rows, words, max_length=4)
    assert set(examples.column_names) == {"input_ids", "attention_mask", "labels", "length"}
    assert examples["input_ids"][:] == [[1, 9, 2], [1, 11, 8, 2], [1, 9, 10, 2]]
    assert examples["labels"][:] == [1, 0, 1]
    assert examples["length"][:] == [3, 4, 4]
    assert data.label_maps(examples, label="labels") == data.label_maps(rows)
    batch = DataCollatorWithPadding(words)([examples[i] for i in range(2)])
    assert batch["input_ids"].shape == (2, 4)
    pairs = table(text=["good", "bad"], other=["in rome", "ada"])
    both = text.tokenize({"test": pairs}, words, text=("text", "other"), label=None)["test"]
    assert both["input_ids"][0] == [1, 9, 2, 7, 8, 2]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert are_progress_bars_disabled() == bars
    refused(lambda: text.tokenize(table(text=["a"], label=["x"]), words), "is text", "data.check")
    refused(lambda: text.tokenize(pairs, words), 'no column "label"')
    begun = with_template(words, None, pad_token="[PAD]", bos_token="[CLS]", eos_token="[SEP]")
    twice = table(text=["good", "[CLS] bad", "[CLS]good"])
    refused(lambda: text.tokenize(twice, begun, label=None), "rows 2, 3: begins with two begin tokens")


def test_align_labels(words):
    rows = data.check_tokens(
        table(tokens=[["goods", "in", "rome"], ["ada", "ate"]], tags=[["O", "O", "B-LOC"], ["B-PER", "O"]])
    )
    examples = text.align_labels(rows, words)
    assert examples["input_ids"][0] == [1, 9, 10, 7, 8, 2]
    assert examples["labels"][:] == [[-100, 0, -100, 0, 1, -100], [-100, 2, 0, -100]]
    assert text.align_labels(rows, words, max_length=4)["labels"][0] == [-100, 0, -100, -100]
    batch = DataCollatorForTokenClassification(words)([{k: v for k, v in e.items() if k != "length"} for e in examples])
    assert batch["labels"][1].tolist() == [-100, 2, 0, -100, -100, -100]


def test_lengths(words):
    rows = table(text=["good " * n for n in (1, 2, 3, 10)])
    report = text.lengths(rows, words, max_length=8, batch_size=2)
    assert report.lengths.tolist() == [3, 4, 5, 12]
    assert report.truncated == 1
    assert report.waste["to max_length"] == 1 - 20 / 32
    assert "1 of 4 rows" in str(report)
    assert "grouped by length" in report._repr_html_()
    examples = text.tokenize(rows, words, label=None)
    assert np.array_equal(text.lengths(examples).lengths, report.lengths)
    assert np.array_equal(text.lengths(examples.remove_columns("length")).lengths, report.lengths)
    refused(lambda: text.lengths(rows), 'no column "input_ids"')


@pytest.mark.parametrize(("n", "batch_size"), [(3, 2), (100, 8), (500, 16), (500, 1), (5000, 4)])
def test_lengths_groups_as_the_trainer_does(n, batch_size, monkeypatch):
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    def randperm(n, generator=None):
        return torch.as_tensor(np.random.default_rng(7).permutation(n))

    monkeypatch.setattr(torch, "randperm", randperm)
    long = np.random.default_rng(0).integers(1, 60, n)
    order = long[list(LengthGroupedSampler(batch_size, lengths=long.tolist()))]
    batches = [order[i : i + batch_size] for i in range(0, n, batch_size)]
    tokens = sum(batch.max() * len(batch) for batch in batches)
    report = text.lengths(Dataset.from_dict({"length": long}), batch_size=batch_size, seed=7)
    assert report.waste["grouped by length"] == pytest.approx(1 - long.sum() / tokens)


# ---- to_messages -----------------------------------------------------------------------------------


def test_three_shapes_of_data_become_messages():
    told = Dataset.from_dict({"instruction": ["Add.", "Say hi."], "input": ["1 and 2", ""], "output": ["3", "Hi"]})
    assert contents(data.to_messages(told)) == [["Add.\n1 and 2", "3"], ["Say hi.", "Hi"]]
    assert contents(data.to_messages(told.remove_columns("input"))) == [["Add.", "3"], ["Say hi.", "Hi"]]
    nulls = Dataset.from_dict({"instruction": ["Add."], "input": [None], "output": ["3"]})
    assert contents(data.to_messages(nulls)) == [["Add.", "3"]]
    own = Dataset.from_dict({"passage": ["Red."], "question": ["What?"], "reply": ["red"], "messages": ["other"]})
    made = data.to_messages(own, prompt="{passage} {{x}} {question}", answer="reply")
    assert made.column_names == ["messages"]
    assert made[0] == {"messages": talk("Red. {x} What?", "red")}
    assert contents(data.to_messages(own, prompt="question", answer="reply", system="Be brief.")) == [
        ["Be brief.", "What?", "red"]
    ]
    already = Dataset.from_dict({"messages": [talk("a", "b", "c", "d", system="s")], "id": [1]})
    assert data.to_messages(already)[:] == {"messages": [talk("a", "b", "c", "d", system="s")]}
    assert contents(data.to_messages(chats(talk("a", "b")), system="s")) == [["s", "a", "b"]]
    split = data.to_messages(DatasetDict(test=told, train=told))
    assert list(split) == ["test", "train"]
    assert split["test"].num_rows == 2


def test_only_role_and_content_stay():
    rows = Dataset.from_dict({"messages": [[{"role": "user", "content": "a", "id": 1}, talk("a", "b")[1] | {"id": 2}]]})
    assert data.to_messages(rows)[0]["messages"] == talk("a", "b")


def test_every_problem_of_messages_is_in_one_error():
    rows = [
        talk("a", "b"),
        [],
        [*talk("a"), {"role": "assistant", "content": None}],
        [{"role": "person", "content": "a"}, {"role": "assistent", "content": "b"}],
        talk("a", " "),
        [*talk("a", "b"), {"role": "system", "content": "s"}],
        [*talk("a"), *talk("b", "c")],
        talk("a", "b")[1:],
        talk("a"),
        *[talk("a", "b", "c")] * 6,
        None,
    ]
    message = refused(
        lambda: data.to_messages(chats(*rows)),
        "rows 2, 16: there are no messages",
        "rows 3, 5: a message of the assistant is empty or null",
        'row 4: role "person" is not one of system, user, assistant, tool. Rename',
        "rows 6, 7, 8, 9, 10 and 5 more: user and assistant do not take turns, the user first",
    )
    assert "4 problems" in message
    near = chats([{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}])
    refused(lambda: data.to_messages(near), "(closest: assistant)")
    refused(
        lambda: data.to_messages(chats(talk("a", "b", system="s")), system="t"), "row 1", "already", "Leave system="
    )


@pytest.mark.parametrize("messages", [["a text"], [["texts"]], [[1, 2]]])
def test_what_is_no_list_of_messages(messages):
    refused(lambda: data.to_messages(Dataset.from_dict({"messages": messages})), '"messages"', '"role"', "prompt=")


def test_problems_of_columns():
    rows = Dataset.from_dict({"question": ["a", "", None, "d"], "reply": ["a", "b", "c", None], "n": [1, 2, 3, 4]})
    refused(
        lambda: data.to_messages(rows, prompt="Tell: {question}", answer="reply"),
        "3 problems",
        'row 2: the text in column "question" is empty',
        'row 3: the text in column "question" is missing',
        'row 4: the text in column "reply" is missing',
    )
    refused(lambda: data.to_messages(rows, prompt="questions", answer="rely"), "closest: question", "closest: reply")
    refused(lambda: data.to_messages(rows, prompt="n", answer="reply"), '"n" holds int64, not text')
    refused(lambda: data.to_messages(rows, prompt="{question", answer="reply"), "no format string", "{passage}")
    refused(lambda: data.to_messages(rows, prompt="{} {question}", answer="reply"), "no format string")
    refused(lambda: data.to_messages(rows, prompt="{{question}}", answer="reply"), "names no column")
    refused(lambda: data.to_messages(rows, prompt="{question} {reply}", answer="reply"), "is the answer, and in the")
    refused(lambda: data.to_messages(rows, prompt="question"), "belong together")
    message = refused(lambda: data.to_messages(rows), 'no column "messages"', "question, reply, n", "prompt=")
    assert '"{passage} {question}"' in message
    empty = Dataset.from_dict({"instruction": ["a", "b"], "output": ["", "b"]})
    refused(lambda: data.to_messages({"train": empty, "test": empty}), "train, row 1", "test, row 1")


def test_the_name_of_the_file_is_kept(tmp_path, tokenizer):
    path = tmp_path / "told.jsonl"
    lines = [{"instruction": "Say hi.", "output": "hi " * n} for n in (1, 200)]
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = data.to_messages(data.read(path))
    refused(lambda: text.tokenize_chat(rows, tokenizer), "told.jsonl, row 2: ")
    path.write_text("\n".join(json.dumps({"messages": talk("a", "b " * n)}) for n in (1, 400)))
    refused(lambda: text.tokenize_chat(data.to_messages(data.read(path)), tokenizer), "told.jsonl, row 2: ")


# ---- tokenize_chat ---------------------------------------------------------------------------------


def test_labels_are_the_answers_with_their_ends_and_nothing_else(tokenizer):
    messages = talk("Which lamp is red?", "The old lamp.", "Why? ñ", "Because 12 is.", system="Be good.")
    example = text.tokenize_chat(chats(messages), tokenizer)[0]
    assert set(example) == {"input_ids", "attention_mask", "labels", "length"}
    ids, labels = example["input_ids"], example["labels"]
    # By hand: what stands between <|assistant|> and <|end|>, the latter with it.
    begin, end, assistant = tokenizer.convert_tokens_to_ids(["<|begin|>", "<|end|>", "<|assistant|>"])
    expected, inside = [], False
    for number in ids:
        expected.append(number if inside else -100)
        inside = (inside or number == assistant) and number != end
    assert labels == expected
    assert tokenizer.decode(counted(example)) == " The old lamp.<|end|> Because 12 is.<|end|>"
    assert ids.count(begin) == 1 == ids.index(begin) + 1, "one begin token"
    assert len(ids) == example["length"] == len(example["attention_mask"]) == sum(example["attention_mask"])
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    assert ids == tokenizer(written, add_special_tokens=False)["input_ids"]


def test_the_prompt_in_training_is_the_prompt_in_inference(tokenizer):
    rows = chats(talk("Which lamp?", "The old one."), talk("And the box?", "It is good."))
    for messages, example in zip(rows["messages"], text.tokenize_chat(rows, tokenizer), strict=True):
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
        n = example["labels"].count(-100)
        assert example["input_ids"][:n] == prompt
        assert example["labels"][n:] == example["input_ids"][n:]


def thinking(answer):
    """A template that writes the last answer in another way than those before it, as those of reasoning models do."""
    return (
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
        "{% if loop.last %}{{ 'think' }}{% endif %}" + answer + "{% else %}{{ m.content + '<|end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def test_marks_say_where_answers_are_when_the_conversation_is_rewritten(tokenizer):
    marked = with_template(tokenizer, thinking("{% generation %}{{ m.content + '<|end|>\\n' }}{% endgeneration %}"))
    rows = chats(talk("Which lamp?", "red", "Why? ñ", "good 😀, 12."), talk("box?", "blue"))
    examples = text.tokenize_chat(rows, marked)
    written = [tokenizer.decode(counted(example)).replace("<|end|> ", "<|end|>").strip() for example in examples]
    assert written == ["red<|end|>good 😀, 12.<|end|>", "blue<|end|>"]
    # This tokenizer writes a capital as a token of its own, which the library's mask leaves out.
    refused(lambda: text.tokenize_chat(chats(talk("a", "Red", "b", "Blue")), marked), "row 1: ", "earlier turns")
    endless = with_template(tokenizer, thinking("{% generation %}{{ m.content }}{% endgeneration %}{{ '<|end|>' }}"))
    refused(lambda: text.tokenize_chat(rows, endless), "row 1: the chat template writes earlier turns")


def test_what_a_template_writes_behind_the_end_does_not_count(tokenizer):
    example = text.tokenize_chat(chats(talk("a lamp", "a box", "a book", "red")), with_template(tokenizer, CHATML))[0]
    assert tokenizer.decode(counted(example)) == "a box<|end|>red<|end|>"
    assert example["labels"][-1] == -100, "the new line"


def test_splits_and_long_rows(tokenizer, caplog, capfd):
    rows = chats(*(talk("lamp", "red " * n) for n in (1, 90, 1, 91, 92, 93, 94, 95)))
    lengths = [len(tokenizer.apply_chat_template(messages)["input_ids"]) for messages in rows["messages"]]
    message = refused(
        lambda: text.tokenize_chat({"train": rows, "test": rows}, tokenizer, max_length=50),
        "train, rows 2, 4, 5, 6, 7 and 1 more: " + ", ".join(map(str, [lengths[i] for i in (1, 3, 4, 5, 6)])),
        "test, rows 2, ",
        "where 50 are allowed",
        "Raise max_length",
        'too_long="drop"',
    )
    assert "2 problems" in message
    kept = text.tokenize_chat(DatasetDict(test=rows, train=rows), tokenizer, max_length=50, too_long="drop")
    assert list(kept) == ["test", "train"]
    assert kept["train"]["input_ids"][:] == text.tokenize_chat(rows.select([0, 2]), tokenizer)["input_ids"][:]
    exactly = text.tokenize_chat(rows, tokenizer, max_length=max(lengths))
    assert exactly["length"][:] == lengths
    longest = max(lengths)
    refused(lambda: text.tokenize_chat(rows, tokenizer, max_length=longest - 1), f"row 8: {longest} tokens")
    refused(lambda: text.tokenize_chat(rows, tokenizer, max_length=5, too_long="drop"), "tokens", "5 are allowed")
    refused(lambda: text.tokenize_chat(rows, tokenizer, too_long="cut"), "'cut'", '"error" or "drop"')
    long = chats(talk("lamp", "red " * 400))
    refused(lambda: text.tokenize_chat(long, tokenizer, max_length=1000), "256 are allowed")  # the tokenizer's limit
    assert "longer than the specified" not in caplog.text + capfd.readouterr().err


def test_row_numbers_across_batches_of_the_map(tokenizer):
    rows = chats(*(talk("lamp", "red " * (60 if n in (1500, 2400) else 1)) for n in range(2500)))
    refused(lambda: text.tokenize_chat(rows, tokenizer, max_length=50), "rows 1501, 2401: ")
    assert text.tokenize_chat(rows, tokenizer, max_length=50, too_long="drop").num_rows == 2498


def test_templates_that_cannot_be_learnt_from(tokenizer, ending):
    rows = chats(talk("a lamp", "red"), talk("a lamp", "red", "a box", "blue"))

    def says(template, *parts, **tokens):
        refused(lambda: text.tokenize_chat(rows, with_template(tokenizer, template, **tokens)), *parts)

    says(None, "no chat template", "text.tokenize_pairs", "tokenizer.chat_template")
    refused(lambda: text.tokenize_chat(rows, ending), "no chat template")
    only_users = "{% for m in messages if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}{% endfor %}"
    says(only_users, "rows 1, 2: all labels are masked")
    last_only = "{{ '<|user|>' + messages[-1].content + '<|end|>' }}"
    says(last_only, "rows 1, 2: what the chat template adds to ask for an answer")
    # As templates of models that reason do: an answer is written in full only while it is the last one.
    forgets = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
        "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{{ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    says(forgets, "row 2: the chat template writes earlier turns in another way")
    no_end = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    says(no_end, "rows 1, 2: no special token ends the answer", "never learn to stop")
    says("{{ raise_exception('No system role') }}", "rows 1, 2: the chat template refuses", "No system role")
    refused(lambda: text.tokenize_chat(chats(talk("a")), tokenizer), "row 1: user and assistant do not take turns")


# ---- tokenize_pairs --------------------------------------------------------------------------------


def test_pairs(ending, tokenizer):
    rows = Dataset.from_dict({"text": ["The lamp is red.", "A box."], "title": ["Red lamp", "Box"], "n": [1, 2]})
    examples = text.tokenize_pairs(rows, ending, source="Title: {text}", target="title")
    assert set(examples.column_names) == {"input_ids", "attention_mask", "labels", "length"}
    for row, example in zip(rows, examples, strict=True):
        assert example["input_ids"] == ending(f"Title: {row['text']}")["input_ids"]
        assert ending.decode(example["labels"]) == f" {row['title']}<|end|>"
        assert example["length"] == len(example["attention_mask"]) == len(example["input_ids"])
    plain = text.tokenize_pairs({"train": rows}, tokenizer, source="text", target="title")["train"]
    assert [labels[-1] for labels in plain["labels"]] == [tokenizer.eos_token_id] * 2, "added where it is missing"


def test_errors_of_pairs(ending):
    rows = Dataset.from_dict({"text": ["a lamp", "", None, "d"], "title": ["a", "b", "c", " "]})

    def says(rows, *parts, source="text", target="title", **options):
        refused(lambda: text.tokenize_pairs(rows, ending, source=source, target=target, **options), *parts)

    says(rows, "row 2", "row 3", 'row 4: the text in column "title" is empty', "3 problems")
    says(rows, 'no column "titel"', "closest: title", target="titel")
    long = Dataset.from_dict({"text": ["red" + " red" * 59, "red", "red"], "title": ["a", "red" + " red" * 69, "b"]})
    says({"test": long}, "test, rows 1, 2: 61, 71 tokens", "20 are allowed", max_length=20)
    kept = text.tokenize_pairs(long, ending, source="text", target="title", max_length=20, too_long="drop")
    assert [ending.decode(labels) for labels in kept["labels"]] == [" b<|end|>"]
    endless = with_template(ending, None, eos_token=None)
    refused(lambda: text.tokenize_pairs(long, endless, source="text", target="title"), "no end token", "eos_token")


# ---- preview ---------------------------------------------------------------------------------------


def test_preview_of_a_chat(tokenizer):
    shown = text.preview(text.tokenize_chat(chats(talk("A <b> lamp? ñ€", "Señor 😀, 2.")), tokenizer)[0], tokenizer)
    first, last = str(shown).splitlines()
    assert first == "<|begin|><|user|> A <b> lamp? ñ€<|end|><|assistant|>[[ Señor 😀, 2.<|end|>]]"
    assert last == f"{shown.n_counted} of {shown.n_tokens} tokens count"
    page = shown._repr_html_()
    assert "<b>" not in page
    assert "A &lt;b&gt; lamp? ñ€" in page
    assert last in page
    assert page.count("#0072b2") == 1


def test_half_a_character_is_shown_where_it_ends(tokenizer):
    ids = tokenizer(" €")["input_ids"]
    assert len(ids) > 3, "the euro sign has to be several tokens"
    shown = text.preview({"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:]}, tokenizer)
    assert str(shown).splitlines()[0].endswith("[[€]]")
    assert "\ufffd" not in str(shown)


def test_preview_of_pairs_and_of_a_batch(ending):
    rows = Dataset.from_dict({"text": ["A lamp <i>.", "Box, box, box, box."], "title": ["Lamp", "Good, good, box"]})
    examples = text.tokenize_pairs(rows, ending, source="text", target="title")
    shown = text.preview(examples[0], ending)
    n = len(examples[0]["labels"])
    total = n + len(examples[0]["input_ids"])
    assert str(shown) == f"source: A lamp <i>.<|end|>\ntarget: [[ Lamp<|end|>]]\n{n} of {total} tokens count"
    assert "&lt;i&gt;" in shown._repr_html_()
    batch = DataCollatorForSeq2Seq(ending)([examples[0], examples[1]])
    row = {"input_ids": batch["input_ids"][0], "labels": batch["labels"][0]}
    assert "target: [[ Lamp<|end|>]]" in str(text.preview(row, ending)), "padded labels are left out"


def test_preview_of_tags(ending):
    words = Dataset.from_dict({"tokens": [["Hello", "lamp"]], "tags": [["O", "B-X"]]})
    example = text.align_labels(data.check_tokens(words), ending)[0]
    shown = text.preview(example, ending)
    assert shown.n_counted == 2
    assert str(shown).count("[[") == 2
    assert shown.n_tokens == len(example["input_ids"])


# ---- The collators of the library ------------------------------------------------------------------


CHATS = [
    talk("Which lamp is red?", "The old lamp."),
    talk("Box?", "Yes."),
    talk("Is the kettle number 7 good, or the book?", "The book is good.", "Why?", "The customer asks for it again."),
    talk("Parcel", "blue"),
]


def loss_sums(model, batch, ends, **options):
    """The summed loss of each example: the sequence is cut at `ends`, where labels are shifted by one."""
    with torch.no_grad():
        logits = model(**batch, **options).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    starts = [0, *ends[:-1]]
    return torch.stack([losses[..., max(a - 1, 0) : b - 1].sum() for a, b in zip(starts, ends, strict=True)])


def packed_and_alone(tokenizer, attention, **options):
    model = tiny_llama(tokenizer, attention=attention).double()  # in fp32 a sum of 100 is rounded to 8e-6
    examples = text.tokenize_chat(chats(*CHATS), tokenizer).to_list()
    names = ("input_ids", "attention_mask", "labels")
    alone = [{name: torch.tensor([example[name]]) for name in names} for example in examples]
    sums = torch.cat([loss_sums(model, batch, [batch["labels"].shape[1]]) for batch in alone])
    batch = DataCollatorWithFlattening(return_tensors="pt")(examples)
    ends = torch.tensor([example["length"] for example in examples]).cumsum(0).tolist()
    ones = {"attention_mask": torch.ones_like(batch["input_ids"])} if options.pop("mask", False) else {}
    return loss_sums(model, batch | ones, ends, **options), sums, batch


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_examples_are_kept_apart_without_a_cache(tokenizer, attention):
    packed, alone, batch = packed_and_alone(tokenizer, attention, use_cache=False)
    assert (batch["position_ids"][0] == 0).sum() == len(CHATS)
    assert alone.min() > 1
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"use_cache": True}, {"use_cache": False, "mask": True}])
def test_packed_examples_see_each_other_with_a_cache_or_a_mask(tokenizer, attention, options):
    """A bug that the lessons warn of: when this test fails the library has changed, and so must they."""
    packed, alone, _ = packed_and_alone(tokenizer, attention, **options)
    assert abs(packed - alone).max() > 0.1
    assert abs(packed - alone)[0] < 1e-4, "the first example sees only itself"


def test_total_loss_keeps_packed_examples_apart(tokenizer):
    _, alone, batch = packed_and_alone(tokenizer, "sdpa", use_cache=False)
    total, n_tokens = metrics.total_loss(tiny_llama(tokenizer).double(), [batch])
    assert total == pytest.approx(alone.sum().item(), abs=1e-3)
    assert n_tokens == (batch["labels"][:, 1:] != -100).sum()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_the_loss_and_masks_labels(tokenizer, side):
    tokenizer.padding_side = side
    examples = text.tokenize_chat(chats(*CHATS), tokenizer).to_list()
    batch = DataCollatorForSeq2Seq(tokenizer)(examples)
    assert ((batch["labels"] == -100) | (batch["attention_mask"] == 1)).all(), "labels of the padding are -100"
    n_labels = [sum(label != -100 for label in example["labels"]) for example in examples]
    assert (batch["labels"] != -100).sum(1).tolist() == n_labels
    model = tiny_llama(tokenizer)
    if side == "right":
        for row, example in enumerate(examples):
            one = {name: torch.tensor([example[name]]) for name in ("input_ids", "attention_mask", "labels")}
            same = {name: batch[name][row : row + 1] for name in one}
            expected = loss_sums(model, one, [example["length"]])
            torch.testing.assert_close(loss_sums(model, same, [batch["labels"].shape[1]]), expected)


def test_padded_targets(ending):
    rows = Dataset.from_dict({"text": ["A lamp.", "box"], "title": ["Lamp", "Good, good, box"]})
    examples = text.tokenize_pairs(rows, ending, source="text", target="title").to_list()
    model = tiny_t5(ending).eval()
    batch = DataCollatorForSeq2Seq(ending, model=model)(examples)
    n = len(examples[0]["labels"])
    assert batch["labels"][0].tolist() == examples[0]["labels"] + [-100] * (batch["labels"].shape[1] - n)
    with torch.no_grad():
        total = (
            model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
            * (batch["labels"] != -100).sum()
        )
        alone = sum(
            model(input_ids=torch.tensor([e["input_ids"]]), labels=torch.tensor([e["labels"]])).loss * len(e["labels"])
            for e in examples
        )
    torch.testing.assert_close(total, alone, rtol=1e-5, atol=1e-4)
