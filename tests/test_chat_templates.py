"""Chat templates in the shape of known families, tool calls, and random templates against a slow reference."""

import json
import os

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from writing import refused, talk

from helpers import data, text


def bytewise(*special, merges=("Ċ Ċ", "Ġ n", ": Ġ", "Ġ Ġ"), **tokens):
    """A tokenizer of bytes, as GPT-2 has them, with a few pairs that are joined."""
    pairs = [tuple(pair.split()) for pair in merges]
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs)]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, pairs))
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    return finished(made, special, tokens)


def sentencepiece_like(*special, **tokens):
    """Letters with a mark for blanks, which comes in front of a text too, and bytes for all other letters."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyzIN.,?!:\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(letters)}, [], byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    return finished(made, special, tokens)


def finished(made, special, tokens):
    tokens = {"bos_token": "<s>", "eos_token": "</s>"} | tokens
    made.add_special_tokens(
        [AddedToken(name, normalized=False) for name in dict.fromkeys([*tokens.values(), *special])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=[*special], **tokens)


# Written anew in the shape of what the families have: (template, special tokens).
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The system's text goes into the last message of the user.
MISTRAL = (
    "{% set told = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% set turns = messages[1:] if told else messages %}{{ bos_token }}{% for m in turns %}"
    "{% if (m.role == 'user') != loop.index0 is even %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{% set last = turns[loop.index0 + 2:] | length == 0 %}"
    "{{ '[INST] ' + (told if last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_3 = (
    "{% set seen = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set seen.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > seen.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MARKED = QWEN_3.replace(
    "{{ m.content + '<|im_end|>\n' }}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}",
)
FAMILIES = {
    "ChatML": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "Llama 3": (LLAMA_3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "Mistral": (MISTRAL, ["[INST]", "[/INST]"], "</s>"),
    "Gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "Qwen 3": (QWEN_3, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "Phi": (PHI, ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<|end|>"),
    "Qwen 3, marked": (MARKED, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
}
KINDS = {"bytes": bytewise, "letters": sentencepiece_like}


def of(family, kind="bytes", **tokens):
    template, special, _ = FAMILIES[family]
    tokenizer = KINDS[kind](*special, **tokens)
    tokenizer.chat_template = template
    return tokenizer


def chats(*conversations):
    return Dataset.from_dict({"messages": list(conversations)})


def trained(tokenizer, messages, **options):
    """The text of the tokens that count, for each example of one conversation."""
    examples = text.tokenize_chat(chats(messages), tokenizer, **options)
    return ["".join(piece for piece, counts in text.preview(e, tokenizer).parts[""] if counts) for e in examples]


TURNS = talk("Is it loud?", "No, ñ 門 👍🏽.", "Why so?", "it is old.")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_train_each_answer_and_its_end(family, kind):
    tokenizer, end = of(family, kind), FAMILIES[family][2]
    first, last = f"No, ñ 門 👍🏽.{end}", f"it is old.{end}"
    blank = " " if family == "Mistral" else ""
    closing = "\n</s>" if family == "Phi" else ""  # behind the last turn of a conversation
    thinks = "<think>\n\n</think>\n\n" if family == "Qwen 3" else ""
    each = [f"{blank}{thinks}{first}{closing}", f"{blank}{thinks}{last}{closing}"]
    assert trained(tokenizer, TURNS, answers="each") == each
    assert trained(tokenizer, TURNS, answers="last") == each[1:]
    if family == "Qwen 3":
        refused(lambda: trained(tokenizer, TURNS), "row 1: ", "earlier turns", 'answers="last"', 'answers="each"')
    else:
        assert trained(tokenizer, TURNS) == [f"{blank}{first}{blank}{last}{closing}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_is_asked(family, kind):
    tokenizer = of(family, kind)
    for example, end in zip(text.tokenize_chat(chats(TURNS), tokenizer, answers="each"), (2, 4), strict=True):
        whole = tokenizer.apply_chat_template(TURNS[:end])["input_ids"]
        asked = tokenizer.apply_chat_template(TURNS[: end - 1], add_generation_prompt=True)["input_ids"]
        assert example["input_ids"] == whole
        n_masked = next(at for at, label in enumerate(example["labels"]) if label != -100)
        if "marked" not in family:  # there the template's own text before the answer does not count
            assert whole[:n_masked] == asked


def test_a_system_message_that_a_template_has_no_place_for():
    told, plain = talk("Is it loud?", "no.", system="be brief."), talk("Is it loud?", "no.")
    message = refused(
        lambda: text.tokenize_chat({"train": chats(plain, told, told)}, of("Gemma")),
        "train, rows 2, 3: the chat template refuses the conversation (System role not supported)",
        "at the start of the user's first message",
    )
    assert "no system role" in message
    # Mistral's goes into the last message of the user, so earlier turns change once another follows.
    assert trained(of("Mistral"), told) == [" no.</s>"]
    refused(lambda: trained(of("Mistral"), [told[0], *TURNS]), "earlier turns in another way", 'answers="each"')
    assert trained(of("Mistral"), [told[0], *TURNS], answers="each") == [" No, ñ 門 👍🏽.</s>", " it is old.</s>"]
    silent = of("ChatML")
    silent.chat_template = CHATML.replace("in messages", "in messages if m.role != 'system'")
    refused(lambda: trained(silent, told), "row 1: the chat template leaves out the system's message")
    default = of("ChatML")
    default.chat_template = (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nbe brief.<|im_end|>\n' }}{% endif %}" + CHATML
    )
    assert trained(default, told) == trained(default, plain) == ["no.<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{{ messages[0].name + 'x' }}", ["rows 1, 2: ", "refuses the conversation", "has no attribute 'name'"]),
        ("{{ 1 / 0 }}", ["rows 1, 2: ", "refuses the conversation (division by zero)"]),
        (CHATML[: CHATML.index("{% if")], ["rows 1, 2: ", "adds nothing to ask for an answer"]),
        (CHATML.replace("assistant\n", "assistant\n<think>\n"), ["rows 1, 2: ", "is not how it begins one"]),
        (CHATML.replace("'<|im_end|>\n'", "'\n'"), ["rows 1, 2: no special token ends the answer"]),
        ("{% for m in messages %}{{ '<|im_start|>' + m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}", ["row 2: the tokenizer joins"]),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_learnt_from(template, parts):
    tokenizer = of("ChatML")
    tokenizer.chat_template = template
    rows = chats(talk("a?", "yes."), talk("a?", "yes.", "b?", "no."))  # " n" is one token
    refused(lambda: text.tokenize_chat(rows, tokenizer), *parts)


def test_end_tokens():
    # The end may be the pad token: DataCollatorForSeq2Seq masks labels by their place, not by what is in it.
    for pad in ("<|im_end|>", None):
        assert trained(of("ChatML", **({"pad_token": pad} if pad else {})), TURNS[2:]) == ["it is old.<|im_end|>"]
    refused(lambda: trained(of("ChatML"), talk("a?", "write <|im_end|> here")), "row 1: ", "learn to stop there")
    inside = of("ChatML")
    inside.chat_template = CHATML.replace("'<|im_end|>\n'", "'\n'")
    refused(lambda: trained(inside, talk("a?", "<s> red")), "no special token ends the answer")  # not "<s>"
    refused(lambda: trained(of("ChatML"), TURNS, answers="first"), "answers='first'", '"each"')
    # Marks that leave the end out: what the template adds says where it is.
    short = of("Qwen 3, marked")
    short.chat_template = MARKED.replace(
        "m.content + '<|im_end|>' }}{% endgeneration %}", "m.content }}{% endgeneration %}<|im_end|>"
    )
    assert trained(short, TURNS[2:]) == ["<think>\n\n</think>\n\nit is old.<|im_end|>"]


def test_rows_and_lengths_where_each_answer_is_an_example():
    rows = chats(TURNS, talk("a?", "b" * 40, "c?", "d"), talk("a?", "b"))
    lengths = text.tokenize_chat(rows, of("Qwen 3"), answers="each")["length"]
    assert len(lengths) == 5
    limit = max(lengths[0], lengths[4])
    refused(lambda: text.tokenize_chat(rows, of("Qwen 3"), answers="each", max_length=limit), "rows 1, 2: ")
    short = text.tokenize_chat(rows, of("Qwen 3"), answers="each", max_length=limit, too_long="drop")
    assert short["length"][:] == [length for length in lengths if length <= limit]


# ---- Tool calls ----------------------------------------------------------------------------------------------------

CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather"}}]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "now", "parameters": {"type": "object"}}}]
KNOWS_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for call in m.tool_calls or [] %}"
    "{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def flow(arguments):
    call = CALL | {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]}
    told = {"role": "tool", "name": "weather", "content": "3"}
    return [*talk("weather?"), call, told, {"role": "assistant", "content": "it is 3."}]


def with_tools(monkeypatch, template, rows):
    """The answers of conversations that `to_messages` has passed, as they come from a column of JSON."""
    monkeypatch.setattr(data, "to_messages", lambda rows: rows)
    tokenizer = of("ChatML")
    tokenizer.chat_template = template
    from datasets import Features, Json, List

    features = Features({"messages": List(Json()), "tools": Json()})
    columns = {name: [row[name] for row in rows] for name in features}
    examples = text.tokenize_chat(Dataset.from_dict(columns, features=features), tokenizer)
    return ["".join(piece for piece, counts in text.preview(e, tokenizer).parts[""] if counts) for e in examples]


def test_tool_calls_are_trained_where_the_template_writes_them(monkeypatch):
    rows = [
        {"messages": flow({"city": "Oslo"}), "tools": TOOLS},
        {"messages": flow(json.dumps({"city": "Oslo"})), "tools": TOOLS},  # as OpenAI's files have it
        {"messages": flow({"day": 7, "no": None})[:2], "tools": TOOLS},
        {"messages": TURNS[2:], "tools": None},
    ]
    call = '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>'
    found = with_tools(monkeypatch, KNOWS_TOOLS, rows)
    assert found[:2] == [f"{call}it is 3.<|im_end|>"] * 2
    assert found[2] == '<call>{"name": "weather", "arguments": {"day": 7, "no": null}}</call><|im_end|>'
    assert found[3] == "it is old.<|im_end|>"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("m.tool_calls or []", "[]"), ["leaves out tool calls"]),
        (("in messages", "in messages if m.role != 'tool'"), ["leaves out the answers of tools"]),
        (("if tools", "if false"), ["leaves out the list of tools"]),
        (("(m.content or '')", "(m.content if m.role != 'tool' else raise_exception('tool?'))"),
         ["refuses the conversation (tool?)", "Take a template that knows tool calls, or drop the row"]),
    ],
)  # fmt: skip
def test_tool_calls_that_the_template_does_not_write(change, parts, monkeypatch):
    rows = [{"messages": TURNS[2:], "tools": None}, {"messages": flow({"city": "Oslo"}), "tools": TOOLS}]
    refused(lambda: with_tools(monkeypatch, KNOWS_TOOLS.replace(*change), rows), "row 2: ", *parts)


# ---- Random templates and conversations ----------------------------------------------------------------------------

EXAMPLES = 2_000 if os.environ.get("RELEASE") == "1" else 200
many = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
)
RANDOM = bytewise("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|close|>")
RANDOM_LETTERS = sentencepiece_like("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|close|>")

shapes = st.fixed_dictionaries(
    {
        "bos": st.booleans(),
        "head": st.sampled_from(["<|{role}|>", "<|{role}|>\n", "<|{role}|> ", "{role}: ", "{role}:", "### {role}\n\n"]),
        "trim": st.booleans(),
        "end": st.sampled_from(["<|end|>"] * 5 + [""]),
        "tail": st.sampled_from(["", "\n", "\n\n", " "]),
        "asks": st.sampled_from([True] * 5 + [False]),
        "thinks": st.sampled_from([""] * 5 + ["<think>\n\n</think>\n\n"]),  # before the last answer only
        "closes": st.sampled_from([""] * 3 + ["<|close|>"]),
        "system": st.sampled_from(["write"] * 4 + ["drop", "refuse"]),
        "marks": st.sampled_from(["none"] * 3 + ["answer and end", "answer"]),
    }
)
said = st.lists(st.sampled_from([*"abn N.\n:", "é", "e\u0301", "門", "👍🏽", "ش", "\u200f"]), min_size=1, max_size=8)
said = said.map("".join)
conversations = st.tuples(st.none() | said, st.lists(said, min_size=2, max_size=6)).filter(
    lambda drawn: all(content.strip() for content in [drawn[0] or "a", *drawn[1]])
)


def template_of(shape):
    content = "(m.content | trim)" if shape["trim"] else "m.content"
    answer = f"{{{{ {content} + end }}}}"
    if shape["marks"] == "answer and end":
        answer = f"{{% generation %}}{answer}{{% endgeneration %}}"
    elif shape["marks"] == "answer":
        answer = f"{{% generation %}}{{{{ {content} }}}}{{% endgeneration %}}{{{{ end }}}}"
    role = {"write": "", "drop": "if m.role != 'system'", "refuse": ""}[shape["system"]]
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    head = "head.replace('{role}', m.role)"
    return (
        f"{{% set head = {shape['head']!r} %}}{{% set end = {shape['end']!r} %}}{{% set tail = {shape['tail']!r} %}}"
        f"{refuses if shape['system'] == 'refuse' else ''}{'{{ bos_token }}' if shape['bos'] else ''}"
        f"{{% for m in messages {role} %}}{{{{ {head} }}}}{{% if m.role == 'assistant' %}}"
        f"{{% if loop.last %}}{{{{ {shape['thinks']!r} }}}}{{% endif %}}{answer}{{{{ tail }}}}"
        f"{{% else %}}{{{{ {content} + end + tail }}}}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}"
        + ("{{ head.replace('{role}', 'assistant') }}" if shape["asks"] else "")
        + f"{{% else %}}{{{{ {shape['closes']!r} }}}}{{% endif %}}"
    )


def by_character(shape, messages, counted):
    """The text, and whether each of its characters counts; or None where it has to be refused.

    Known from the shape alone; `counted` are the numbers of the answers that count.
    """
    ends = shape["end"] or (shape["closes"] and len(counted) == 1)
    if (messages[0]["role"] == "system" and shape["system"] != "write") or not ends:
        return None
    marked = is_marked(shape)
    if not marked and (not shape["asks"] or (shape["thinks"] and len(counted) > 1)):
        return None
    pieces = [("<s>" if shape["bos"] else "", False)]
    for i, message in enumerate(messages):
        last = i == len(messages) - 1
        pieces.append((shape["head"].replace("{role}", message["role"]), False))
        pieces.append((shape["thinks"] if last else "", not marked))
        content = message["content"].strip() if shape["trim"] else message["content"]
        pieces.append((content + shape["end"], i in counted))
        pieces.append((shape["tail"], last and not marked and bool(shape["closes"])))
    pieces.append((shape["closes"], not marked))
    return "".join(piece for piece, _ in pieces), [counts for piece, counts in pieces for _ in piece]


def is_marked(shape):
    return shape["marks"] == "answer and end" and bool(shape["end"])


@many
@given(shapes, conversations, st.sampled_from([RANDOM, RANDOM_LETTERS]), st.sampled_from(["all", "last", "each"]))
def test_random_templates_against_the_reference(shape, drawn, tokenizer, answers):
    system, contents = drawn
    messages = talk(*contents[: len(contents) // 2 * 2], system=system)
    tokenizer.chat_template = template_of(shape)
    special = set(tokenizer.all_special_ids)
    found = list(text._chat_examples(tokenizer, special, answers, {"messages": [messages]}))
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    expected = [(end, [end]) for end in ends] if answers == "each" else [(ends[-1], ends[-1:])]
    expected = [(ends[-1], ends)] if answers == "all" else expected
    for (_, example, problem), (end, counted) in zip(found, expected, strict=True):
        reference = by_character(shape, messages[: end + 1], counted)
        if reference is None:
            event("refused")
            assert problem
            continue
        written, counts = reference
        assert written == tokenizer.apply_chat_template(messages[: end + 1], tokenize=False)
        encoded = tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
        places = [range(*offsets) for offsets in encoded["offset_mapping"]]
        if not is_marked(shape) and any(len({counts[at] for at in place}) > 1 for place in places):
            event("joined")
            assert problem == text.JOINED
            continue
        event("taken")
        labels = [any(counts[at] for at in place) for place in places]
        labels = [number if counts else -100 for number, counts in zip(encoded["input_ids"], labels, strict=True)]
        assert (problem, example["input_ids"], example["labels"]) == (None, encoded["input_ids"], labels)
