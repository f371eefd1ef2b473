"""Data and answers of models that write: which tokens count, that batches change nothing, and what errors say."""

import json
import logging

import pytest
import torch
from corpus import train_writing_tokenizer
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers import data, generate, metrics

TEXTS = [
    f"The {thing} number {n} is {colour}, and the customer asks for the {thing} again."
    for n in range(9)
    for thing in ("lamp", "parcel", "kettle", "box", "book")
    for colour in ("red", "green", "blue", "old", "good")
]
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


def with_template(tokenizer, template, **tokens):
    """The same tokenizer with another chat template, so that no test changes that of another."""
    changed = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=256,
        **{"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>"} | tokens,
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
    )
    changed.chat_template = template
    return changed


def refused(function, *parts):
    """The message of the error, in which each of the parts has to be."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - a DataError is one
        function()
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


def talk(*contents, system=None):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def chats(*conversations):
    return Dataset.from_dict({"messages": list(conversations)})


def contents(rows):
    return [[message["content"] for message in messages] for messages in rows["messages"]]


def counted(example):
    return [label for label in example["labels"] if label != -100]


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
        [{"role": "human", "content": "a"}, {"role": "assistent", "content": "b"}],
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
        "row 3: a role or a content is missing (null)",
        'row 4: role "human" is not one of system, user, assistant. Rename',
        "row 5: a message of the assistant is empty",
        "row 6: a system message is not the first one",
        "rows 7, 8: user and assistant do not take turns",
        "rows 9, 10, 11, 12, 13 and 2 more: the last message is not an assistant's",
    )
    assert "7 problems" in message
    near = chats([{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}])
    refused(lambda: data.to_messages(near), "(closest: assistant)")
    refused(
        lambda: data.to_messages(chats(talk("a", "b", system="s")), system="t"), "row 1", "already", "Leave system="
    )


@pytest.mark.parametrize("messages", [["a text"], [["texts"]], [[{"from": "human", "value": "a"}]], [[1, 2]]])
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
    typo = Dataset.from_dict({"instructions": ["a"], "output": ["b"]})
    refused(lambda: data.to_messages(typo), 'closest to "instruction": instructions')
    empty = Dataset.from_dict({"instruction": ["a", "b"], "output": ["", "b"]})
    refused(lambda: data.to_messages({"train": empty, "test": empty}), "train, row 1", "test, row 1")


def test_the_name_of_the_file_is_kept(tmp_path, tokenizer):
    path = tmp_path / "told.jsonl"
    lines = [{"instruction": "Say hi.", "output": "hi " * n} for n in (1, 200)]
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = data.to_messages(data.read(path))
    refused(lambda: data.tokenize_chat(rows, tokenizer), "told.jsonl, row 2: ")
    path.write_text("\n".join(json.dumps({"messages": talk("a", "b " * n)}) for n in (1, 400)))
    refused(lambda: data.tokenize_chat(data.to_messages(data.read(path)), tokenizer), "told.jsonl, row 2: ")


# ---- tokenize_chat ---------------------------------------------------------------------------------


def test_labels_are_the_answers_with_their_ends_and_nothing_else(tokenizer):
    messages = talk("Which lamp is red?", "The old lamp.", "Why? ñ", "Because 12 is.", system="Be good.")
    example = data.tokenize_chat(chats(messages), tokenizer)[0]
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
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_prompt_in_training_is_the_prompt_in_inference(tokenizer):
    rows = chats(talk("Which lamp?", "The old one."), talk("And the box?", "It is good."))
    for messages, example in zip(rows["messages"], data.tokenize_chat(rows, tokenizer), strict=True):
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
        n = example["labels"].count(-100)
        assert example["input_ids"][:n] == prompt
        assert example["labels"][n:] == example["input_ids"][n:]


def test_what_a_template_writes_behind_the_end_does_not_count(tokenizer):
    example = data.tokenize_chat(chats(talk("a lamp", "a box", "a book", "red")), with_template(tokenizer, CHATML))[0]
    assert tokenizer.decode(counted(example)) == "a box<|end|>red<|end|>"
    assert example["labels"][-1] == -100, "the new line"


def test_splits_and_long_rows(tokenizer, caplog, capfd):
    rows = chats(*(talk("lamp", "red " * n) for n in (1, 90, 1, 91, 92, 93, 94, 95)))
    lengths = [len(tokenizer.apply_chat_template(messages)["input_ids"]) for messages in rows["messages"]]
    message = refused(
        lambda: data.tokenize_chat({"train": rows, "test": rows}, tokenizer, max_length=50),
        "train, rows 2, 4, 5, 6, 7 and 1 more: " + ", ".join(map(str, [lengths[i] for i in (1, 3, 4, 5, 6)])),
        "test, rows 2, ",
        "where 50 are allowed",
        "Raise max_length",
        'too_long="drop"',
    )
    assert "2 problems" in message
    kept = data.tokenize_chat(DatasetDict(test=rows, train=rows), tokenizer, max_length=50, too_long="drop")
    assert list(kept) == ["test", "train"]
    assert kept["train"]["input_ids"][:] == data.tokenize_chat(rows.select([0, 2]), tokenizer)["input_ids"][:]
    exactly = data.tokenize_chat(rows, tokenizer, max_length=max(lengths))
    assert exactly["length"][:] == lengths
    longest = max(lengths)
    refused(lambda: data.tokenize_chat(rows, tokenizer, max_length=longest - 1), f"row 8: {longest} tokens")
    refused(lambda: data.tokenize_chat(rows, tokenizer, max_length=5, too_long="drop"), "tokens", "5 are allowed")
    refused(lambda: data.tokenize_chat(rows, tokenizer, too_long="cut"), "'cut'", '"error" or "drop"')
    long = chats(talk("lamp", "red " * 400))
    refused(lambda: data.tokenize_chat(long, tokenizer, max_length=1000), "256 are allowed")  # the tokenizer's limit
    assert "longer than the specified" not in caplog.text + capfd.readouterr().err


def test_row_numbers_across_batches_of_the_map(tokenizer):
    rows = chats(*(talk("lamp", "red " * (60 if n in (1500, 2400) else 1)) for n in range(2500)))
    refused(lambda: data.tokenize_chat(rows, tokenizer, max_length=50), "rows 1501, 2401: ")
    assert data.tokenize_chat(rows, tokenizer, max_length=50, too_long="drop").num_rows == 2498


def test_templates_that_cannot_be_learnt_from(tokenizer, ending):
    rows = chats(talk("a lamp", "red"), talk("a lamp", "red", "a box", "blue"))

    def says(template, *parts, **tokens):
        refused(lambda: data.tokenize_chat(rows, with_template(tokenizer, template, **tokens)), *parts)

    says(None, "no chat template", "data.tokenize_pairs", "tokenizer.chat_template")
    refused(lambda: data.tokenize_chat(rows, ending), "no chat template")
    only_users = "{% for m in messages if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}{% endfor %}"
    says(only_users, "rows 1, 2: all labels are masked")
    last_only = "{{ '<|user|>' + messages[-1].content + '<|end|>' }}"
    says(last_only, "rows 1, 2: the chat template writes a conversation in another way")
    # As templates of models that reason do: an answer is written in full only while it is the last one.
    forgets = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
        "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{{ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    says(forgets, "row 2: the chat template writes a conversation in another way")
    no_end = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    says(no_end, "rows 1, 2: no special token ends the answer", "never learn to stop")
    says(tokenizer.chat_template, '"<|end|>" ends an answer', "pad token", "never learn to stop", pad_token="<|end|>")
    says("{{ raise_exception('No system role') }}", "refuses a conversation", "No system role")
    refused(lambda: data.tokenize_chat(chats(talk("a")), tokenizer), "row 1: the last message is not an assistant's")


# ---- tokenize_pairs --------------------------------------------------------------------------------


def test_pairs(ending, tokenizer):
    rows = Dataset.from_dict({"text": ["The lamp is red.", "A box."], "title": ["Red lamp", "Box"], "n": [1, 2]})
    examples = data.tokenize_pairs(rows, ending, source="Title: {text}", target="title")
    assert set(examples.column_names) == {"input_ids", "attention_mask", "labels", "length"}
    for row, example in zip(rows, examples, strict=True):
        assert example["input_ids"] == ending(f"Title: {row['text']}")["input_ids"]
        assert ending.decode(example["labels"]) == f" {row['title']}<|end|>"
        assert example["length"] == len(example["attention_mask"]) == len(example["input_ids"])
    plain = data.tokenize_pairs({"train": rows}, tokenizer, source="text", target="title")["train"]
    assert [labels[-1] for labels in plain["labels"]] == [tokenizer.eos_token_id] * 2, "added where it is missing"


def test_errors_of_pairs(ending):
    rows = Dataset.from_dict({"text": ["a lamp", "", None, "d"], "title": ["a", "b", "c", " "]})

    def says(rows, *parts, source="text", target="title", **options):
        refused(lambda: data.tokenize_pairs(rows, ending, source=source, target=target, **options), *parts)

    says(rows, "row 2", "row 3", 'row 4: the text in column "title" is empty', "3 problems")
    says(rows, 'no column "titel"', "closest: title", target="titel")
    long = Dataset.from_dict({"text": ["red" + " red" * 59, "red", "red"], "title": ["a", "red" + " red" * 69, "b"]})
    says({"test": long}, "test, rows 1, 2: 61, 71 tokens", "20 are allowed", max_length=20)
    kept = data.tokenize_pairs(long, ending, source="text", target="title", max_length=20, too_long="drop")
    assert [ending.decode(labels) for labels in kept["labels"]] == [" b<|end|>"]
    endless = with_template(ending, None, eos_token=None)
    refused(lambda: data.tokenize_pairs(long, endless, source="text", target="title"), "no end token", "eos_token")


# ---- preview ---------------------------------------------------------------------------------------


def test_preview_of_a_chat(tokenizer):
    shown = data.preview(data.tokenize_chat(chats(talk("A <b> lamp? ñ€", "Señor 😀, 2.")), tokenizer)[0], tokenizer)
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
    shown = data.preview({"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:]}, tokenizer)
    assert str(shown).splitlines()[0].endswith("[[€]]")
    assert "\ufffd" not in str(shown)


def test_preview_of_pairs_and_of_a_batch(ending):
    rows = Dataset.from_dict({"text": ["A lamp <i>.", "Box, box, box, box."], "title": ["Lamp", "Good, good, box"]})
    examples = data.tokenize_pairs(rows, ending, source="text", target="title")
    shown = data.preview(examples[0], ending)
    n = len(examples[0]["labels"])
    total = n + len(examples[0]["input_ids"])
    assert str(shown) == f"source: A lamp <i>.<|end|>\ntarget: [[ Lamp<|end|>]]\n{n} of {total} tokens count"
    assert "&lt;i&gt;" in shown._repr_html_()
    batch = DataCollatorForSeq2Seq(ending)([examples[0], examples[1]])
    row = {"input_ids": batch["input_ids"][0], "labels": batch["labels"][0]}
    assert "target: [[ Lamp<|end|>]]" in str(data.preview(row, ending)), "padded labels are left out"


def test_preview_of_tags(ending):
    words = Dataset.from_dict({"tokens": [["Hello", "lamp"]], "tags": [["O", "B-X"]]})
    example = data.align_labels(data.check_tokens(words), ending)[0]
    shown = data.preview(example, ending)
    assert shown.n_counted == 2
    assert str(shown).count("[[") == 2
    assert shown.n_tokens == len(example["input_ids"])


# ---- The collators of the library ------------------------------------------------------------------


def tiny_llama(tokenizer, **options):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=None)
    # A wide initialisation makes the next token clear, so that rounding decides nothing.
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3, **sizes, **ids)
    config._attn_implementation = options.pop("attention", "sdpa")
    return LlamaForCausalLM(config)


def tiny_t5(tokenizer):
    torch.manual_seed(0)
    ids = dict(pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=tokenizer.pad_token_id, eos_token_id=None)
    sizes = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), initializer_factor=3.0, **sizes, **ids))


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
    examples = data.tokenize_chat(chats(*CHATS), tokenizer).to_list()
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
    examples = data.tokenize_chat(chats(*CHATS), tokenizer).to_list()
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
    examples = data.tokenize_pairs(rows, ending, source="text", target="title").to_list()
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


# ---- texts -----------------------------------------------------------------------------------------

PROMPTS = [
    "Which lamp?",
    "The customer asks for the old kettle number 12 again, and the book.",
    "Box",
    "Is it good? Or red?",
]


def adapted(tokenizer):
    model = get_peft_model(
        tiny_llama(tokenizer), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    )
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def case(kind, tokenizer, ending):
    """A model, its tokenizer, and for each prompt what `model.generate` makes of it alone."""
    if kind == "t5":
        model, used = tiny_t5(ending), ending
        inputs = [ending(prompt)["input_ids"] for prompt in PROMPTS]
    else:
        model, used = (adapted if kind == "lora" else tiny_llama)(tokenizer), tokenizer
        messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        inputs = [tokenizer.apply_chat_template(m, add_generation_prompt=True)["input_ids"] for m in messages]
    model.eval()
    alone = []
    for ids in inputs:
        made = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=12
        )
        alone.append(made[0, 1 if kind == "t5" else len(ids) :].tolist())
    return model.train(), used, alone


def decoded(tokenizer, rows):
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in rows]


@pytest.mark.parametrize("kind", ["llama", "t5", "lora"])
def test_a_batch_writes_what_each_prompt_alone_gets(kind, tokenizer, ending):
    model, used, alone = case(kind, tokenizer, ending)
    expected = decoded(used, alone)
    assert len(set(expected)) == len(PROMPTS), "different texts, or the order would not show"
    options = dict(max_new_tokens=12, eos_token_id=None)
    for side in ("left", "right"):
        used.padding_side = side
        for size in (1, 3, 16):
            assert generate.texts(model, used, PROMPTS, batch_size=size, **options) == expected
        assert used.padding_side == side
    used.padding_side = "right"
    assert generate.texts(model, used, PROMPTS[::-1], batch_size=2, **options) == expected[::-1]
    assert generate.texts(model, used, Dataset.from_dict({"p": PROMPTS})["p"], **options) == expected
    assert generate.texts(model, used, []) == []
    assert model.training


def test_padding_on_the_right_would_be_seen(tokenizer):
    model, _, alone = case("llama", tokenizer, None)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    batch = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    made = model.eval().generate(**batch, do_sample=False, max_new_tokens=12)[:, batch["input_ids"].shape[1] :]
    assert made.tolist() != alone


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_stopped_means_that_the_model_ended_it(kind, tokenizer, ending):
    model, used, alone = case(kind, tokenizer, ending)
    end = alone[0][5]  # some rows write it within twelve tokens, for others it is made sure that they do not
    expected = [ids[: ids.index(end) + 1] if end in ids else ids for ids in alone]
    options = dict(max_new_tokens=12, batch_size=2, return_stopped=True)
    answers, stopped = generate.texts(model, used, PROMPTS, eos_token_id=end, **options)
    assert answers == decoded(used, expected)
    assert stopped == [end in ids for ids in alone]
    assert stopped[0]
    never = next(i for i in range(len(used)) if not any(i in ids for ids in alone))
    assert generate.texts(model, used, PROMPTS, eos_token_id=[never], **options)[1] == [False] * 4
    several = generate.texts(model, used, PROMPTS, eos_token_id=[never, end], **options)
    assert several == (answers, stopped)


def test_the_end_tokens_are_those_of_the_model_and_of_the_tokenizer(tokenizer):
    model = tiny_llama(tokenizer)
    assert generate._end_ids(model, tokenizer) == [tokenizer.eos_token_id]
    model.generation_config.eos_token_id = 9
    assert generate._end_ids(model, tokenizer) == sorted([9, tokenizer.eos_token_id])
    model.generation_config.eos_token_id = [9, 11]
    assert generate._end_ids(model, tokenizer) == sorted([9, 11, tokenizer.eos_token_id])


def test_special_tokens_are_not_in_the_text(tokenizer):
    model = tiny_llama(tokenizer)
    with torch.no_grad():  # whatever the prompt: the end token is the likeliest
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    ends = torch.nn.Parameter(torch.zeros(len(tokenizer)).index_fill(0, torch.tensor(tokenizer.eos_token_id), 9.0))
    model.lm_head.bias = ends
    assert generate.texts(model, tokenizer, PROMPTS, return_stopped=True) == ([""] * 4, [True] * 4)


def test_messages_and_texts_are_the_same_prompt(tokenizer):
    model = tiny_llama(tokenizer)
    options = dict(max_new_tokens=8, eos_token_id=None)
    expected = generate.texts(model, tokenizer, PROMPTS, **options)
    assert generate.texts(model, tokenizer, [talk(prompt) for prompt in PROMPTS], **options) == expected
    with_answers = data.to_messages(Dataset.from_dict({"p": PROMPTS, "a": PROMPTS}), prompt="p", answer="a")
    assert generate.texts(model, tokenizer, with_answers["messages"], **options) == expected
    longer = [talk("a", "b", prompt) for prompt in PROMPTS]
    assert generate.texts(model, tokenizer, longer, **options) != expected, "earlier answers stay"
    plain = generate.texts(model, with_template(tokenizer, None), PROMPTS, **options)
    assert plain != expected, "without a template the text is taken as it is"
    ids = tokenizer(PROMPTS[1], return_tensors="pt")
    made = model.generate(**ids, do_sample=False, max_new_tokens=8)
    assert plain[1] == decoded(tokenizer, [made[0, ids["input_ids"].shape[1] :].tolist()])[0]


def test_nothing_is_disturbed_and_nothing_is_said(tokenizer, capfd, caplog, recwarn):
    model = adapted(tokenizer).train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    model.generation_config.temperature = 0.5  # the library warns that greedy does not use it
    handler, verbosity = logging.getLogger("transformers"), logging.getLogger("transformers").level
    handler.addHandler(caplog.handler)
    recwarn.clear()
    capfd.readouterr()
    generate.texts(model, tokenizer, PROMPTS, max_new_tokens=2)
    handler.removeHandler(caplog.handler)
    assert [module.training for module in model.modules()] == modes
    assert logging.getLogger("transformers").level == verbosity
    assert (caplog.text, *capfd.readouterr(), len(recwarn)) == ("", "", "", 0)
    with pytest.raises(ValueError, match="prompt 2 is None"):
        generate.texts(model, tokenizer, ["a", None])
    assert [module.training for module in model.modules()] == modes, "put back after an error too"


def test_errors_of_prompts(tokenizer, ending):
    model, t5 = tiny_llama(tokenizer), tiny_t5(ending)
    refused(lambda: generate.texts(model, tokenizer, "a lamp"), "one text", "[prompt]")
    refused(lambda: generate.texts(model, tokenizer, ["a", ""]), "prompt 2", "''")
    refused(lambda: generate.texts(model, tokenizer, [["a"]]), "prompt 1", "list of messages")
    refused(lambda: generate.texts(model, tokenizer, [talk("a", "b")[1:]]), "prompt 1", "an answer only")
    refused(lambda: generate.texts(t5, ending, [talk("a")]), "prompt 1", "no chat template")
    refused(lambda: generate.texts(model, tokenizer, ["a"], num_return_sequences=2), "num_return_sequences")


# ---- compare ---------------------------------------------------------------------------------------


def test_compare():
    long = "The passage " * 20 + "Which colour?"
    table = generate.compare(
        [long, talk("a", "b", "What <b>?", "c")],
        ["red", "a lamp"],
        before=["Red", " a  lamp\n"],
        after=["red", "x" * 100],
    )
    assert list(table) == ["prompt", "reference", "before", "after"]
    assert table["before"].tolist() == ["✗ Red", "✓ a lamp"]
    assert table["after"][0] == "✓ red"
    assert table["prompt"][0].endswith("Which colour?")
    assert table["prompt"][0].startswith("The passage")
    assert table.map(len).max().max() <= generate.SHOWN + 2
    assert len(table["after"][1]) > 50
    assert table["prompt"][1] == "What <b>?"
    assert "What &lt;b&gt;?" in table._repr_html_()
    assert "| ✗ Red " in str(table)


def test_errors_of_compare():
    refused(lambda: generate.compare(["a"], ["b", "c"], now=["d"]), "1 prompt, 2 reference, 1 now")
    refused(lambda: generate.compare(["a"], ["b"], prompt=["d"]), '"prompt"', "another name")
