"""What a model answers: texts for a list of prompts, in batches, and tables that put answers side by side.

    before = generate.texts(model, tokenizer, prompts)
    ...                                                       # train
    after = generate.texts(model, tokenizer, prompts)
    generate.compare(prompts, references, before=before, after=after)

Decoders and encoder-decoders, with or without adapters. What spoils answers without an error is taken care of here:
decoders are padded on the left, prompts go through the chat template that training used, and dropout is off.
"""

import contextlib
import warnings

from helpers import data, record

SHOWN = 60  # characters of a cell of a table


def texts(model, tokenizer, prompts, *, batch_size=16, return_stopped=False, **generation):
    """What the model writes for each prompt, as a list of texts in the same order.

    A prompt is a text, a list of messages, or a row with `messages` and `tools`; an assistant's message at its end, the
    reference, is left off. A decoder whose tokenizer has a chat template gets the prompt through it, others get a text
    as it is. Greedy, and at most 48 new tokens, unless `generation` says otherwise: it goes to `model.generate`. With
    `return_stopped` also a list of bool: whether the model ended its text itself, before `max_new_tokens` did.

    The tokenizer and the model's training mode stay as they were. Raises `ValueError` for what is no prompt.

    >>> from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))  # not trained, so it writes nonsense
    >>> answers, stopped = texts(model, tokenizer, ["Good?", "Is it good?"], max_new_tokens=3, return_stopped=True)
    >>> len(answers), len(stopped)
    (2, 2)

    Taught in notebooks/02_generation.ipynb, "Round 2: fine-tune".
    """
    if "num_return_sequences" in generation:
        raise ValueError("num_return_sequences: there is one text for each prompt. Repeat the prompt instead.")
    if isinstance(prompts, str):
        raise ValueError("prompts is one text, and a list is expected. Put it in brackets: [prompt].")
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": 48, "eos_token_id": _end_ids(model, tokenizer)}
    options |= generation
    ends = options["eos_token_id"]
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    results = {}
    with _undisturbed(model):
        inputs = [_ids(model, tokenizer, prompt, number) for number, prompt in enumerate(prompts, 1)]
        # the longest first: little padding, and too long a prompt fails at once
        order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            results |= zip(batch, _generated(model, tokenizer, [inputs[i] for i in batch], options), strict=True)
    new = [results[i] for i in range(len(inputs))]
    answers = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]
    return (answers, [not ends.isdisjoint(ids) for ids in new]) if return_stopped else answers


def _end_ids(model, tokenizer):
    """The tokens that end a text: those of the model, and the tokenizer's."""
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None}) or None


@contextlib.contextmanager
def _undisturbed(model):
    """No dropout and no advice of the library; each module's training mode and the logs are put back."""
    from transformers.utils import logging

    modes, verbosity = [(module, module.training) for module in model.modules()], logging.get_verbosity()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.set_verbosity_error()
            model.eval()
            yield
    finally:
        logging.set_verbosity(verbosity)
        for module, training in modes:
            module.training = training


def _ids(model, tokenizer, prompt, number):
    """The token ids of one prompt."""
    prompt, tools = (prompt.get("messages"), prompt.get("tools")) if isinstance(prompt, dict) else (prompt, None)
    if not prompt or not (isinstance(prompt, str) or all(isinstance(message, dict) for message in prompt)):
        raise ValueError(f"prompt {number} is {prompt!r}. A text, or a list of messages, is expected.")
    through_template = tokenizer.chat_template and not model.config.is_encoder_decoder
    if through_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        if not messages:
            raise ValueError(f"prompt {number} holds an answer only. A message of the user is expected before it.")
        ids = _asked(tokenizer, messages, tools, number)
    elif not isinstance(prompt, str):
        raise ValueError(f"prompt {number} is a list of messages, but there is no chat template. Pass a text.")
    else:
        ids = tokenizer(prompt)["input_ids"]
    begin = tokenizer.added_tokens_decoder.get(next(iter(ids), None))
    if begin and begin.special and str(prompt).startswith(begin.content) and (through_template or ids[1:2] == ids[:1]):
        writer = "chat template" if through_template else "tokenizer"
        raise ValueError(
            f"prompt {number} begins with {begin.content}, and the {writer} writes that too: it would be there twice. "
            "Pass the messages, or the text alone."
        )
    return ids


def _asked(tokenizer, messages, tools, number):
    """The token ids of messages as the chat template writes them, up to where the answer begins."""
    messages = list(map(data.for_template, messages))
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)["input_ids"]
    except Exception as error:  # a template is a program: it can raise whatever it likes
        cure = "Change the messages, or the template."
        if messages[0]["role"] == "system":
            cure = "If it has no system role, put that message's text at the start of the user's first message."
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"prompt {number}: the chat template refuses it ({reason}). {cure}") from None


def _generated(model, tokenizer, inputs, generation):
    """The new token ids of each input of one batch."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    # A decoder goes on after the last place, so that has to be the prompt's last token: padding goes in front.
    # (`tokenizer.pad` would refuse a tokenizer that has no pad token.)
    encoder_decoder = model.config.is_encoder_decoder
    options = {"batch_first": True, "padding_side": "right" if encoder_decoder else "left"}
    pad = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    ids = pad_sequence([torch.tensor(row) for row in inputs], padding_value=pad, **options).to(model.device)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in inputs], **options).to(model.device)
    generated = model.generate(input_ids=ids, attention_mask=mask, **{"pad_token_id": pad} | generation)
    return generated[:, 1 if encoder_decoder else ids.shape[1] :].tolist()


def next_tokens(model, tokenizer, prompt, *, at=1, shown=10, **generation):
    """The likeliest tokens at a place of the answer: a list of dicts of token, probability, kept and after.

    `probability` is the model's, `kept` what is left for drawing once penalties, temperature, top-k and top-p of
    `generation` have acted; when nothing is drawn, the best token keeps it all. `at` counts the tokens of the answer,
    `after` is its text up to there. Beams play no part here.

    >>> from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    >>> rows = next_tokens(model, tokenizer, "Is it good?", do_sample=True, top_k=2)
    >>> [row["kept"] > 0 for row in rows[:3]]
    [True, True, False]
    """
    import torch

    with _undisturbed(model):
        ids = torch.tensor([_ids(model, tokenizer, prompt, 1)]).to(model.device)
        options = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id} | generation
        options |= {"eos_token_id": _end_ids(model, tokenizer), "num_beams": 1, "max_new_tokens": at}
        options |= {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
        generated = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    probabilities, kept = (scores[-1][0].float().softmax(-1) for scores in (generated.logits, generated.scores))
    if not options["do_sample"]:
        kept = torch.nn.functional.one_hot(kept.argmax(), len(kept)).float()
    after = tokenizer.decode(generated.sequences[0][-len(generated.logits) : -1])
    return [
        {"token": tokenizer.decode([i]), "probability": probabilities[i].item(), "kept": kept[i].item(), "after": after}
        for i in probabilities.topk(min(shown, len(kept))).indices.tolist()
    ]


def compare(prompts, references, **answers):
    """A table of prompts, their references and the texts of each keyword, with ✓ where a text equals its reference.

    White space does not count, everything else does. Long cells are shortened in the middle. A prompt that is a list of
    messages is shown by its last message of the user.

    >>> compare(["Which colour?"], ["red"], before=["a lamp"], after=["red"])
    | prompt        | reference   | before   | after   |
    |:--------------|:------------|:---------|:--------|
    | Which colour? | red         | ✗ a lamp | ✓ red   |

    Taught in notebooks/02_generation.ipynb, "Before and after".
    """
    columns = {"prompt": prompts, "reference": references}
    taken = columns.keys() & answers.keys()
    if taken:
        raise ValueError(f'"{min(taken)}" is a column of the table already. Give these texts another name.')
    columns = {name: list(column) for name, column in (columns | answers).items()}
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise ValueError(f"the columns have different lengths: {lengths}. Pass one per prompt, in the same order.")
    rows = []
    for prompt, reference, *texts in zip(*columns.values(), strict=True):
        row = {"prompt": _short(_question(prompt)), "reference": _short(reference)}
        for name, text in zip(answers, texts, strict=True):
            row[name] = f"{'✓' if text.split() == reference.split() else '✗'} {_short(text)}"
        rows.append(row)
    return record.show(rows)


def _question(prompt):
    if isinstance(prompt, str):
        return prompt
    messages = prompt["messages"] if isinstance(prompt, dict) else prompt
    return [message["content"] for message in messages if message["role"] == "user"][-1]


def _short(text):
    text = " ".join(text.split())
    if len(text) <= SHOWN:
        return text
    end = SHOWN // 2 - 3  # the question often stands at the end
    return f"{text[: SHOWN - end - 3].rstrip()} … {text[-end:].lstrip()}"
