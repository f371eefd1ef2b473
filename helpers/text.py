"""From rows of text to examples of token ids: tokenise, mask prompts, look at what counts, count lengths.

    examples = text.tokenize(splits, tokenizer)                 # rows that `helpers.data` has checked
    examples = text.tokenize_chat(data.to_messages(rows), tokenizer)
    text.preview(examples["train"][0], tokenizer)               # the tokens that count are marked

Nothing is padded here: the collators of `transformers` pad each batch to its own longest example. As in
`helpers.data` the examples stay on disk, and whatever is wrong is a `DataError` that names the rows.
"""

import functools
import html
import itertools
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import DatasetDict

from . import data


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

    return data._each(dataset, lambda rows: _map_labelled(rows, encode, columns, label))


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


def _map_labelled(rows, encode, columns, label):
    """The encoded columns, with the labels under the name that the Trainer expects."""
    data._single(rows, [*columns, *filter(None, [label])])
    selected = rows.with_format(None).select_columns([*columns, *filter(None, [label])])
    if label:
        if re.search("string", data._kind(rows.features[label])):
            raise data.DataError(
                f'{data._file_name(rows)}: column "{label}" is text. Pass the data through data.check first.'
            )
        selected = selected.rename_column(label, "labels") if label != "labels" else selected
    return data._map(selected, encode, remove_columns=columns)


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


def tokenize_chat(dataset, tokenizer, *, max_length=None, too_long="error"):
    """Turns conversations into token ids, with labels on the assistant's turns and -100 on all other tokens.

    The tokenizer's own chat template writes them, the same that `apply_chat_template` uses when the model is asked, so
    there is exactly one begin token. An answer is the text that the template adds for it. Where the template rewrites
    earlier turns when an answer follows, its `{% generation %}` marks say where the answers are. The token that ends an
    answer counts too: from it the model learns to stop. Returns `input_ids`, `attention_mask`, `labels`, `length`;
    nothing is padded: `DataCollatorForSeq2Seq(tokenizer)` pads a batch, labels with -100. `max_length` never cuts an
    answer: longer rows are an error, or left out by `too_long="drop"` (compare `num_rows`).

    Raises `DataError` for what `to_messages` would refuse, for a tokenizer without a chat template, for one that pads
    with the token that ends an answer, and for rows in which the template does not show where an answer starts.

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
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    encode = functools.partial(_chat_examples, tokenizer, added | set(tokenizer.all_special_ids))
    return _examples(data.to_messages(dataset), ["messages"], encode, _limit(tokenizer, max_length), too_long)


REWRITTEN = (
    "the chat template writes a conversation in another way once an answer is added, so where the answer starts is not "
    "known. Use a template that only appends, or that marks answers with {% generation %}, and contents without white "
    "space around them"
)
MASKED = "all labels are masked: the template writes nothing of an answer, so nothing would be learnt. Correct it"
ENDLESS = "no special token ends the answer, so the model would never learn to stop. End it in the chat template"


def _chat_examples(tokenizer, special, batch):
    """Yields for each conversation its example, and what is wrong with it."""
    for messages, (ids, spans) in zip(batch["messages"], _added_answers(tokenizer, batch["messages"]), strict=True):
        spans = _marked_answers(tokenizer, messages) if spans is None else spans
        labels, problem = [-100] * len(ids), REWRITTEN if spans is None else None
        for start, end in spans or []:
            # Some templates go on after the end token, with a new line: nobody generates that far.
            stop = max((at + 1 for at in range(start, end) if ids[at] in special), default=None)
            if stop is None:
                problem = MASKED if start == end else ENDLESS
            elif ids[stop - 1] == tokenizer.pad_token_id:
                raise data.DataError(
                    f'the token "{tokenizer.pad_token}" ends an answer and is the pad token too: what masks the '
                    "padding would mask the end of each answer, and the model would never learn to stop. Set "
                    "tokenizer.pad_token to a token of its own."
                )
            else:
                labels[start:stop] = ids[start:stop]
        yield _example(ids, labels), problem


def _added_answers(tokenizer, conversations):
    """Each conversation's token ids and the (start, end) of each answer: what it adds to the conversation before it.

    Instead of the answers there is None where the template writes what was before in another way.
    """
    turns = [
        (row, i)
        for row, messages in enumerate(conversations)
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    before = [conversations[row][:i] for row, i in turns]
    starts = _apply_template(tokenizer, before, add_generation_prompt=True)["input_ids"]
    ends = _apply_template(tokenizer, [conversations[row][: i + 1] for row, i in turns])["input_ids"]
    whole = {row: ids for (row, _), ids in zip(turns, ends, strict=True)}  # a row's last turn is there last
    spans = {row: [] for row in whole}
    for (row, _), start, end in zip(turns, starts, ends, strict=True):
        if end[: len(start)] != start or whole[row][: len(end)] != end:
            spans[row] = None
        elif spans[row] is not None:
            spans[row].append((len(start), len(end)))
    return [(ids, spans[row]) for row, ids in whole.items()]


def _marked_answers(tokenizer, messages):
    """The (start, end) of each answer by the template's {% generation %} marks; None where it has none.

    Only a second choice: `transformers` finds the tokens by their characters, which some tokenizers place wrongly (a
    token that says "upper case" has no character of its own). So None too where a whole answer is not in its tokens.
    """
    if not tokenizer.is_fast or not re.search(r"{%-?\s*generation\b", tokenizer.get_chat_template()):
        return None
    encoded = _apply_template(tokenizer, [messages], return_assistant_tokens_mask=True)
    ids, edges = encoded["input_ids"][0], np.flatnonzero(np.diff([0, *encoded["assistant_masks"][0], 0])).tolist()
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    written = [tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False) for start, end in spans]
    exact = len(spans) == len(answers) and all(map(str.__contains__, written, answers))
    return spans if exact else None


def _apply_template(tokenizer, conversations, **options):
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            conversations, tokenize=True, return_dict=True, tokenizer_kwargs={"verbose": False}, **options
        )
    except TemplateError as error:
        reason = data._first_line(error)
        raise data.DataError(
            f"the chat template refuses a conversation ({reason}). Change the messages, or the template."
        ) from None


def _example(ids, labels):
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "length": len(ids)}


def _examples(dataset, columns, encode, limit, too_long):
    """The examples of each split; raises for wrong rows, and for long ones where they are not to be dropped."""
    if too_long not in ("error", "drop"):
        raise data.DataError(f'too_long={too_long!r} is not known. Pass "error" or "drop".')
    problems, splits = data.Problems(), data._splits(dataset)
    results = {
        where: _split_examples(problems, where, rows, columns, encode, limit, too_long)
        for where, rows in splits.items()
    }
    problems.raise_all(", ".join(results))
    return DatasetDict({name: results[name] for name in dataset}) if isinstance(dataset, dict) else results.popitem()[1]


def _split_examples(problems, where, rows, columns, encode, limit, too_long):
    long = {}  # row: tokens

    def checked(batch, indices):
        examples = []
        for i, (example, problem) in zip(indices, encode(batch), strict=True):
            n_tokens = max(len(example["input_ids"]), len(example["labels"]))
            if problem:
                problems.add(where, f"{problem}.", i + 1)
            elif limit is not None and n_tokens > limit:
                long[i + 1] = n_tokens
            examples.append(example)
        return {name: [example[name] for example in examples] for name in examples[0]}

    examples = data._map(
        rows.with_format(None).select_columns(columns), checked, remove_columns=columns, with_indices=True
    )
    if long and (too_long == "error" or len(long) == rows.num_rows):
        counts = ", ".join(map(str, list(long.values())[: data.SHOWN])) + (", ..." if len(long) > data.SHOWN else "")
        cure = ', or drop the rows with too_long="drop"' if too_long == "error" else ": no row would be left"
        for row in long:
            problems.add(
                where,
                f"{counts} tokens, where {limit} are allowed, so the end would be cut off. Raise max_length (as far as "
                f"the model takes it) or shorten the texts{cure}.",
                row,
            )
    return examples.select([i for i in range(rows.num_rows) if i + 1 not in long]) if long else examples


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
        raise data.DataError(
            "this tokenizer has no end token: the model could not learn to stop. Set tokenizer.eos_token."
        )
    splits, problems = data._splits(dataset), data.Problems()
    for where, rows in splits.items():
        data._check_pairs(problems, where, rows, source, target)
    problems.raise_all(", ".join(splits))
    columns, end = [*data._fields(source), target], tokenizer.eos_token_id

    def encode(batch):
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        sources, targets = [data._filled(source, row) for row in rows], [row[target] for row in rows]
        encoded = tokenizer(sources, text_target=targets, truncation=False, verbose=False)
        for ids, labels in zip(encoded["input_ids"], encoded["labels"], strict=True):
            yield _example(ids, labels if labels[-1:] == [end] else [*labels, end]), None

    return _examples(dataset, columns, encode, _limit(tokenizer, max_length), too_long)


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
