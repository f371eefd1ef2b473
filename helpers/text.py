"""From rows of text to examples of token ids: tokenise, mask prompts, look at what counts, count lengths.

    examples = text.tokenize(splits, tokenizer)                 # rows that `helpers.data` has checked
    examples = text.tokenize_chat(data.to_messages(rows), tokenizer)
    text.preview(examples["train"][0], tokenizer)               # the tokens that count are marked

Nothing is padded here: the collators of `transformers` pad each batch to its own longest example. As in
`helpers.data` the examples stay on disk, and whatever is wrong is a `DataError` that names the rows.
"""

import contextlib
import functools
import html
import itertools
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import DatasetDict, Features, List, Value

from . import data

EXAMPLE = Features(
    {"input_ids": List(Value("int32")), "attention_mask": List(Value("int8")), "labels": List(Value("int64"))}
    | {"length": Value("int64")}
)


def tokenize(dataset, tokenizer, *, text="text", label="label", max_length=None):
    """Turns texts into token ids, with `labels` and `length`, and no other columns.

    Nothing is padded: `DataCollatorWithPadding` pads each batch to its own longest example, which costs
    far less than padding all of them to `max_length` (see `lengths`). Examples longer than `max_length`
    (or than the model takes) are cut. `label=None` is for text without labels. Works on a dict of
    splits too.

    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> tokenize(Dataset.from_dict({"text": ["good", "good value"], "label": [0, 1]}), tokenizer)["length"][:]
    [3, 4]

    Taught in notebooks/00_start_here.ipynb, "Before and after".
    """
    columns, limit = data._columns(text), _limit(tokenizer, max_length)

    def encode(batch):
        encoded = tokenizer(*[batch[c] for c in columns], truncation=limit is not None, max_length=limit)
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    begins = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    return data._each(dataset, lambda rows: _map_labelled(rows, encode, columns, label, begins))


def align_labels(dataset, tokenizer, *, tokens="tokens", tags="tags", max_length=None):
    """Turns words into token ids, with each word's tag on its first token and -100 on all others.

    -100 is the label that the loss leaves out, so a word counts once however many tokens it has.

    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from helpers import data, env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> rows = data.check_tokens(Dataset.from_dict({"tokens": [["Hello", "Ann"]], "tags": [["O", "B-PER"]]}))
    >>> align_labels(rows, tokenizer)["labels"][0]
    [-100, 0, 1, -100]

    Taught in notebooks/more/01b_named_entities.ipynb, "Tags of words, tokens of a model".
    """
    limit = _limit(tokenizer, max_length)
    if not tokenizer.is_fast:
        raise data.DataError(f"{type(tokenizer).__name__} cannot say which word a token is of. Use a fast tokenizer.")

    def encode(batch):
        encoded = tokenizer(batch[tokens], is_split_into_words=True, truncation=limit is not None, max_length=limit)
        labels = []
        for i, word_tags in enumerate(batch["labels"]):
            words = encoded.word_ids(i)  # None for special tokens
            is_first = [word not in (None, before) for before, word in zip([None, *words], words, strict=False)]
            labels.append([word_tags[word] if first else -100 for word, first in zip(words, is_first, strict=True)])
        return {**encoded, "labels": labels, "length": [len(ids) for ids in encoded["input_ids"]]}

    return data._each(dataset, lambda rows: _map_labelled(rows, encode, [tokens], tags))


def _map_labelled(rows, encode, columns, label, begins=frozenset()):
    """The encoded columns, with the labels under the name that the Trainer expects; no row begins twice."""
    data._single(rows, [*columns, *filter(None, [label])])
    selected = rows.with_format(None).select_columns([*columns, *filter(None, [label])])
    if label:
        if re.search("string", data._kind(rows.features[label])):
            raise data.DataError(f'{data._file_name(rows)}: column "{label}" is text. Pass it through data.check.')
        selected = selected.rename_column(label, "labels") if label != "labels" else selected
    problems, where = data.Problems(), data._file_name(rows)

    def checked(batch, indices):
        encoded = encode(batch)
        for i, ids in zip(indices, encoded["input_ids"], strict=True):
            if ids[:1] == ids[1:2] and begins.issuperset(ids[:1]):
                what = "begins with two begin tokens: the text has one, and the tokenizer adds one"
                problems.add(where, f"{what}. Take it out of the text; chats go to tokenize_chat.", i + 1)
        return encoded

    examples = data._map(selected, checked, remove_columns=columns, with_indices=True)
    problems.raise_all(where)
    return examples


def _limit(tokenizer, max_length):
    # A tokenizer that does not know its model's limit says 1e30.
    limit = min(max_length or 1e30, tokenizer.model_max_length)
    return int(limit) if limit < 1e6 else None


@dataclass
class Lengths:
    """Token counts, and the share of each batch that is padding for three ways to pad; see `lengths`.

    >>> Lengths(np.array([4, 8]), 16, 2, 0, {"to max_length": 0.625}).table.loc["to max_length"].tolist()
    [32.0, 0.625]
    """

    lengths: np.ndarray
    max_length: int
    batch_size: int
    truncated: int
    waste: dict

    @property
    def table(self):
        """The tokens that each way of padding computes, and the share of them that is padding, as a DataFrame."""
        used = np.minimum(self.lengths, self.max_length).sum()
        columns = {
            "tokens in batches": {way: round(used / (1 - share)) for way, share in self.waste.items()},
            "of these padding": {way: round(share, 3) for way, share in self.waste.items()},
        }
        return pd.DataFrame(columns).rename_axis("padding")

    def __str__(self):
        low, middle, high = (int(value) for value in np.quantile(self.lengths, [0, 0.5, 1]))
        cut = f"{self.truncated} of {len(self.lengths)} rows are longer than {self.max_length} tokens and are cut."
        return f"{low} to {high} tokens a row, median {middle}. {cut}\n{self.table}"

    __repr__ = __str__

    def _repr_html_(self):
        return f"<p>{str(self).splitlines()[0]}</p>{self.table._repr_html_()}"


def lengths(dataset, tokenizer=None, *, text="text", max_length=512, batch_size=16, seed=0):
    """Counts tokens, truncated rows and padding, for three ways to make batches of these rows.

    Without a tokenizer the data set has to be tokenised already; rows that `tokenize` has cut count as cut rows do.
    "Grouped by length" is the Trainer's
    `train_sampling_strategy="group_by_length"`: shuffled, sorted within a quarter of the rows at a time, or within 50
    batches where that is less, and the longest row swapped to the front.

    >>> from datasets import Dataset
    >>> examples = Dataset.from_dict({"length": [4, 8] * 8})
    >>> lengths(examples, max_length=16, batch_size=2, seed=1)  # doctest: +NORMALIZE_WHITESPACE
    4 to 8 tokens a row, median 6. 0 of 16 rows are longer than 16 tokens and are cut.
                       tokens in batches  of these padding
    padding
    to max_length                    256             0.625
    to the longest                   120             0.200
    grouped by length                104             0.077

    Taught in notebooks/01_classification.ipynb, "How much of the work is padding?".
    """
    counts = _token_counts(dataset, tokenizer, data._columns(text))
    cut = np.minimum(counts, max_length)
    shuffled = np.random.default_rng(seed).permutation(cut)
    together = max(1, min(len(cut) // (4 * batch_size), 50)) * batch_size
    groups = np.array_split(shuffled, range(together, len(cut), together))
    grouped = np.concatenate([np.sort(group)[::-1] for group in groups])
    longest = together * grouped[::together].argmax()
    grouped[[0, longest]] = grouped[[longest, 0]]
    starts = np.arange(0, len(cut), batch_size)
    sizes = np.diff(np.append(starts, len(cut)))
    waste = {"to max_length": float(1 - cut.mean() / max_length)}
    for way, order in {"to the longest": shuffled, "grouped by length": grouped}.items():
        waste[way] = float(1 - cut.sum() / (np.maximum.reduceat(order, starts) * sizes).sum())
    return Lengths(counts, max_length, batch_size, int((counts > max_length).sum()), waste)


def _token_counts(dataset, tokenizer, columns):
    if tokenizer is not None:
        data._single(dataset, columns)
        batches = dataset.with_format(None).select_columns(columns).iter(1000)
        encoded = (tokenizer(*[batch[c] for c in columns], truncation=False, verbose=False) for batch in batches)
        return np.array([len(ids) for batch in encoded for ids in batch["input_ids"]])
    column = "length" if "length" in data._single(dataset).column_names else "input_ids"
    data._single(dataset, [column])
    values = (value for _, (value,) in data._numbered(dataset, column))
    return np.array([value if column == "length" else len(value) for value in values])


# ---- Texts to write ----------------------------------------------------------------------------------


def tokenize_chat(dataset, tokenizer, *, answers="all", max_length=None, too_long="error"):
    """Turns conversations into token ids, with labels on the assistant's turns and -100 on all other tokens.

    The tokenizer's own chat template writes them, the same that `apply_chat_template` uses when the model is asked, so
    there is exactly one begin token. An answer is what the template marks with `{% generation %}`, or else the text
    that it adds for it. The token that ends an answer counts too: from it the model learns to stop. Tool calls count as
    any answer; a column `tools` goes to the template.

    Some templates write earlier turns in another way once others follow (Qwen3 takes their thoughts out), so not all
    answers of a row can count. With `answers="last"` only the last one does; with "each" every answer becomes an
    example of its own, which ends there, as the model will see it.

    Returns `input_ids`, `attention_mask`, `labels`, `length`; nothing is padded: `DataCollatorForSeq2Seq(tokenizer)`
    pads a batch, labels with -100 by their place, so the pad token may be the one that ends an answer. `max_length`
    never cuts an answer: longer examples are an error, or left out by `too_long="drop"` (compare `num_rows`).

    Raises `DataError`, with the rows, for what `to_messages` would refuse, for a template that refuses a conversation
    or does not write all of it, and where it does not show where an answer starts and ends.

    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> tokenizer.chat_template = (
    ...     "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    ...     "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    >>> rows = data.to_messages(Dataset.from_dict({"instruction": ["Is it good?"], "output": ["Very good."]}))
    >>> examples = tokenize_chat(rows, tokenizer)
    >>> preview(examples[0], tokenizer)
    <|user|> is it good? <|end|> <|assistant|>[[ very good. <|end|>]]
    4 of 11 tokens count

    Taught in notebooks/02_generation.ipynb, "Round 1: which tokens count".
    """
    if not tokenizer.chat_template:
        raise data.DataError(
            f"this {type(tokenizer).__name__} has no chat template: it is of a base model, or of an encoder-decoder "
            "(use text.tokenize_pairs). Set tokenizer.chat_template before training, and save it with the model."
        )
    if answers not in ("all", "last", "each"):
        raise data.DataError(f'answers={answers!r} is not known. Pass "all", "last" or "each".')
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    encode = functools.partial(_chat_examples, tokenizer, added | set(tokenizer.all_special_ids), answers)
    return _tokenized(data.to_messages(dataset), ["messages", "tools"], encode, _limit(tokenizer, max_length), too_long)


MASKED = "all labels are masked: the template writes nothing of an answer, so nothing would be learnt. Correct it"
ENDLESS = "no special token ends the answer, so the model would never learn to stop. End it in the chat template"
END_INSIDE = "an answer holds the text of the token that ends answers: the model would learn to stop there. Take it out"
REWRITTEN = (
    "the chat template writes earlier turns in another way once others follow, so not all answers of a row can count. "
    'Pass answers="last", and only the last one does, or answers="each", and each becomes an example of its own'
)
OTHER_PROMPT = "what the chat template adds to ask for an answer is not how it begins one: add {% generation %} marks"
NO_PROMPT = "the chat template adds nothing to ask for an answer: end it with {% if add_generation_prompt %} a heading"
JOINED = "the tokenizer joins the prompt's end with the answer's start: take white space off the answer or the prompt"


def _chat_examples(tokenizer, special, answers, batch):
    """Yields for each example the number of its conversation, itself, and what is wrong with it, or None."""
    chats, problems = [], {}
    for row, messages in enumerate(batch["messages"]):
        ends = [end for end, message in enumerate(messages, 1) if message["role"] == "assistant"]
        for last in ends if answers == "each" else ends[-1:]:
            tools = batch["tools"][row] if "tools" in batch else None
            chat = _Chat(tokenizer, special, list(map(data.for_template, messages[:last])), tools or None)
            chats.append((row, chat))
            with _noted(problems, chat):
                chat.write(ends if answers == "all" else [last])
    texts = list(dict.fromkeys(text for _, chat in chats for text in chat.texts))
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    ids = dict(zip(texts, encoded, strict=True))
    for row, chat in chats:
        whole = ids.get(chat.whole, [])
        labels = [-100] * len(whole)
        with _noted(problems, chat):
            for start, end in chat.spans(ids):
                labels[start:end] = whole[start:end]
        yield row, _example(whole, labels), problems.get(chat)


@contextlib.contextmanager
def _noted(problems, key):
    try:
        yield
    except data.DataError as error:
        problems[key] = str(error)


class _Chat:
    """A conversation and what the tokenizer's chat template makes of it; what is wrong raises `DataError`.

    `whole` is its text; `turns` has for each answer that counts the number of its message, from 1, the text that asks
    for it, and the text up to its end.
    """

    def __init__(self, tokenizer, special, messages, tools):
        self.tokenizer, self.special, self.messages, self.tools = tokenizer, special, messages, tools
        self.whole, self.turns = "", []

    @property
    def texts(self):
        return [self.whole, *(text for _, *texts in self.turns for text in texts)] if self.turns else []

    def template(self, messages, **options):
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **{"tools": self.tools} | options)

    def write(self, ends):
        """Writes the conversation, and each turn that ends with one of these messages."""
        try:
            self.whole = self.template(self.messages)
            asked = [self.template(self.messages[: end - 1], add_generation_prompt=True) for end in ends]
            turns = [self.template(self.messages[:end]) for end in ends]
        except Exception as error:  # a template is a program: it can raise whatever it likes
            reason = " ".join(str(error).split()).rstrip(".")
            raise data.DataError(f"the chat template refuses the conversation ({reason}). {self.cure()}") from None
        self.turns = list(zip(ends, asked, turns, strict=True))
        self.check_that_all_is_written()

    def cure(self):
        plain = self.without("system")
        if plain != self.messages and self.writes(plain) is not None:
            return "It has no system role: put that message's text at the start of the user's first message"
        if self.tools or any("tool_calls" in message for message in self.messages):
            return "Take a template that knows tool calls, or drop the row"
        return "Change the messages, or the template"

    def without(self, role):
        return [message for message in self.messages if message["role"] != role]

    def writes(self, messages, **options):
        """The text of other messages, or None where the template refuses them."""
        with contextlib.suppress(Exception):  # as in `write`
            return self.template(messages, **options)

    def check_that_all_is_written(self):
        plain = [message | {"content": message.get("content") or ""} for message in self.messages]
        for message in plain:
            message.pop("tool_calls", None)
        parts = {"tool calls": plain, "the answers of tools": self.without("tool")}
        if self.messages[0]["role"] == "system":  # changed, as a template may have the same text by default
            changed = self.messages[0] | {"content": self.messages[0]["content"] + "."}
            parts["the system's message"] = [changed, *self.messages[1:]]
        lost = [part for part, fewer in parts.items() if fewer != self.messages and self.writes(fewer) == self.whole]
        if self.tools and self.writes(self.messages, tools=None) == self.whole:
            lost.append("the list of tools")
        if lost:
            cure = "Take one that writes all of it, or put it into messages that this one writes"
            raise data.DataError(f"the chat template leaves out {' and '.join(lost)}. {cure}")

    def spans(self, ids):
        """The (start, end) of the tokens of each answer that counts, its end token included."""
        marked = self.marked()
        if marked is not None:
            return marked[-len(self.turns) :]
        return [self.added(ids, *turn) for turn in reversed(self.turns)]  # what is wrong with the last is told first

    def marked(self):
        """The spans of all answers by the template's {% generation %} marks; None where it has none.

        None too where a whole answer with its end is not in its tokens: `transformers` finds them by their characters,
        which some tokenizers place wrongly (a token that says "upper case" has no character of its own).
        """
        template = self.tokenizer.get_chat_template(tools=self.tools)
        if not self.turns or not self.tokenizer.is_fast or not re.search(r"{%-?\s*generation\b", template):
            return None
        encoded = self.tokenizer.apply_chat_template(
            self.messages, tools=self.tools, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}
        )
        ids, edges = encoded["input_ids"], np.flatnonzero(np.diff([0, *encoded["assistant_masks"], 0])).tolist()
        answers = [message for message in self.messages if message["role"] == "assistant"]
        marks = zip(edges[::2], edges[1::2], strict=True)
        spans = [(start, self.body_and_end(ids, start, stop)[1]) for start, stop in marks]
        if len(spans) != len(answers) or any(end is None for _, end in spans):
            return None
        written = [self.tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False) for start, end in spans]
        whole = all((one.get("content") or "").strip() in text for one, text in zip(answers, written, strict=True))
        return spans if whole else None

    def added(self, ids, number, asked, turn):
        """The span of an answer that is what the template adds to the text that asks for it."""
        whole, alone, start = ids[self.whole], ids[turn], len(ids[asked])
        if whole[:start] != ids[asked]:
            changed = OTHER_PROMPT if turn == self.whole else REWRITTEN
            raise data.DataError(JOINED if self.whole.startswith(asked) else changed)
        body, end = self.body_and_end(alone, start, len(alone))
        if end is None:
            raise data.DataError(MASKED if turn == asked else ENDLESS)
        content = (self.messages[number - 1].get("content") or "").strip()
        heading = turn[len(asked) :].partition(content)[0].strip() if content else ""
        if heading and (self.writes(self.messages[: number - 1]) or "").startswith(asked):
            raise data.DataError(NO_PROMPT)
        if self.tokenizer.convert_ids_to_tokens(alone[end - 1]) in content:
            raise data.DataError(END_INSIDE)
        different = (at for at, (one, other) in enumerate(zip(whole, alone, strict=False)) if one != other)
        same = next(different, min(len(whole), len(alone)))
        end = self.body_and_end(whole, start, same)[1]
        if body > same or end is None:
            raise data.DataError(REWRITTEN)
        return start, end

    def body_and_end(self, ids, start, stop):
        """Where an answer's own tokens end, and where the last special token behind them does, or None.

        Some templates go on after the end token, with a new line: nobody generates that far.
        """
        body = stop
        while body > start and (ids[body - 1] in self.special or not self.tokenizer.decode(ids[body - 1]).strip()):
            body -= 1
        return body, max((at + 1 for at in range(body, stop) if ids[at] in self.special), default=None)


def _example(ids, labels):
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "length": len(ids)}


def _tokenized(dataset, columns, encode, limit, too_long):
    """The examples of each split; raises for wrong rows, and for long ones where they are not to be dropped."""
    if too_long not in ("error", "drop"):
        raise data.DataError(f'too_long={too_long!r} is not known. Pass "error" or "drop".')
    problems, splits = data.Problems(), data._splits(dataset)
    given = (columns, encode, limit, too_long)
    results = {where: _tokenized_split(problems, where, rows, *given) for where, rows in splits.items()}
    problems.raise_all(", ".join(results))
    return DatasetDict({name: results[name] for name in dataset}) if isinstance(dataset, dict) else results.popitem()[1]


def _tokenized_split(problems, where, rows, columns, encode, limit, too_long):
    short, long = [], {}  # whether each example is short enough; row: tokens

    def checked(batch, indices):
        examples = []
        for i, example, problem in encode(batch):
            row, n_tokens = indices[i] + 1, max(len(example["input_ids"]), len(example["labels"]))
            short.append(limit is None or n_tokens <= limit)
            if problem:
                problems.add(where, f"{problem}.", row)
            elif not short[-1]:
                long[row] = n_tokens
            examples.append(example)
        return {name: [example[name] for example in examples] for name in EXAMPLE}

    columns = [column for column in columns if column in rows.column_names]
    rows = rows.with_format(None).select_columns(columns)
    examples = data._map(rows, checked, remove_columns=columns, with_indices=True, features=EXAMPLE)
    if long and (too_long == "error" or not any(short)):
        counts = ", ".join(map(str, list(long.values())[: data.SHOWN])) + (", ..." if len(long) > data.SHOWN else "")
        cure = ', or drop the rows with too_long="drop"' if too_long == "error" else ": no row would be left"
        what = f"{counts} tokens, where {limit} are allowed, so the end would be cut off"
        what = f"{what}. Raise max_length (as far as the model takes it) or shorten the texts{cure}."
        problems.add(where, what, *long)
    return examples.select(np.flatnonzero(short)) if long else examples


def tokenize_pairs(dataset, tokenizer, *, source, target, max_length=None, too_long="error"):
    """Turns pairs of texts into token ids for an encoder-decoder: `input_ids` of the source, `labels` of the target.

    `source` is a column or a format string such as "summarize: {text}", `target` a column. Labels end with the end
    token, and all of them count. Returns `input_ids`, `attention_mask`, `labels`, `length` (of the source), not padded:
    `DataCollatorForSeq2Seq(tokenizer)` does that. `max_length` is for each side; `too_long` is as in `tokenize_chat`.

    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"), eos_token="[SEP]")
    >>> rows = Dataset.from_dict({"text": ["A very good book."], "title": ["Good book"]})
    >>> preview(tokenize_pairs(rows, tokenizer, source="Title: {text}", target="title")[0], tokenizer)
    source: [CLS] title : a very good book. [SEP]
    target: [[[CLS] good book [SEP]]]
    4 of 13 tokens count

    Taught in notebooks/more/02b_encoder_decoder.ipynb, "A source and a target".
    """
    if tokenizer.eos_token_id is None:
        raise data.DataError("this tokenizer has no end token, so the model never stops. Set tokenizer.eos_token.")
    splits, problems = data._splits(dataset), data.Problems()
    for where, rows in splits.items():
        data._check_pairs(problems, where, rows, target, source)
    problems.raise_all(", ".join(splits))
    columns, end = [*data._fields(source), target], tokenizer.eos_token_id

    def encode(batch):
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        sources, targets = [data._filled(source, row) for row in rows], [row[target] for row in rows]
        encoded = tokenizer(sources, text_target=targets, truncation=False, verbose=False)
        for row, (ids, labels) in enumerate(zip(encoded["input_ids"], encoded["labels"], strict=True)):
            yield row, _example(ids, labels if labels[-1:] == [end] else [*labels, end]), None

    return _tokenized(dataset, columns, encode, _limit(tokenizer, max_length), too_long)


@dataclass
class Preview:
    """One example as text, in which the tokens that count are marked; see `preview`.

    `parts` are {name: [(text, whether it counts), ...]}.

    >>> Preview({"": [("Is it good?", False), (" Yes.", True)]}, 2, 6)
    Is it good?[[ Yes.]]
    2 of 6 tokens count
    """

    parts: dict
    n_counted: int
    n_tokens: int

    def __str__(self):
        lines = []
        for name, pieces in self.parts.items():
            text = "".join(f"[[{text}]]" if counts else text for text, counts in pieces)
            lines.append(f"{name}: {text.strip()}" if name else text.strip())
        return "\n".join([*lines, f"{self.n_counted} of {self.n_tokens} tokens count"])

    __repr__ = __str__

    def _repr_html_(self):
        # Blue and grey are told apart by every eye, and each is legible on white and on black.
        styles = {True: "background: #0072b2; color: #ffffff", False: "color: #767676"}
        lines = []
        for name, pieces in self.parts.items():
            spans = "".join(f'<span style="{styles[counts]}">{html.escape(text)}</span>' for text, counts in pieces)
            heading = f"<b>{name}</b> " if name else ""
            lines.append(f'<div style="white-space: pre-wrap; font-family: monospace">{heading}{spans}</div>')
        return "".join(lines) + f"<div>{self.n_counted} of {self.n_tokens} tokens count</div>"


def preview(example, tokenizer):
    """Shows an example of `tokenize_chat`, `tokenize_pairs` or `align_labels` as text, the tokens that count marked.

    In a notebook they are blue, in print they stand in [[double brackets]]. A source and its target are shown apart.

    >>> from transformers import AutoTokenizer
    >>> from helpers import env
    >>> tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    >>> ids = tokenizer("very good value")["input_ids"]
    >>> preview({"input_ids": ids, "labels": [-100, -100, *ids[2:]]}, tokenizer)
    [CLS] very[[ good value [SEP]]]
    3 of 5 tokens count

    Taught in notebooks/02_generation.ipynb, "Round 1: which tokens count".
    """
    ids, labels = ([int(number) for number in example[name]] for name in ("input_ids", "labels"))
    # Labels of a target are other tokens, and all count; else there is one for each token of the text.
    if len(ids) == len(labels) and (-100 in labels or labels == ids):
        parts = {"": _pieces(ids, [label != -100 for label in labels], tokenizer)}
        return Preview(parts, len(labels) - labels.count(-100), len(ids))
    target = [label for label in labels if label != -100]
    source = _pieces(ids, [False] * len(ids), tokenizer)
    parts = {"source": source, "target": _pieces(target, [True] * len(target), tokenizer)}
    return Preview(parts, len(target), len(ids) + len(target))


def _pieces(ids, counts, tokenizer):
    """The text of each run of tokens that count, or do not."""
    pieces, text, end = [], "", 0
    for counted, run in itertools.groupby(counts):
        end += len(list(run))
        # All up to here, as words are joined by what stands before; half a character waits for its other bytes.
        now = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        now = now if end == len(ids) else now.rstrip("\ufffd")
        pieces.append((now[len(text) :], counted))
        text = now
    return pieces
