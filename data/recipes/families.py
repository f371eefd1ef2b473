"""The three kinds of tiny model: how each is built, what a training example is, its loss and its optimizers.

An *encoder* predicts masked tokens, a *decoder* the next token, an *encoder-decoder* (`seq2seq`) a text from a text.
Rows are arrays of token ids; an example of the encoder-decoder is a pair of them, source and target.
"""

import math
import re

import numpy as np
import torch
from muon import Muon32
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)


def build_model(recipe, tokenizer):
    """The untrained model of a recipe."""
    vocabulary = math.ceil(len(tokenizer) / 64) * 64
    hidden, layers, heads = recipe["hidden"], recipe["layers"], recipe["heads"]
    torch.manual_seed(recipe["seed"])
    if recipe["family"] == "encoder":
        config = ModernBertConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=2 * hidden,
            max_position_embeddings=recipe["max_length"],
            global_attn_every_n_layers=1,
            classifier_pooling="mean",
            pad_token_id=tokenizer.pad_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
        return ModernBertForMaskedLM(config)
    if recipe["family"] == "decoder":
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=round(hidden * 8 / 3 / 64) * 64,
            max_position_embeddings=recipe["max_length"],
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return LlamaForCausalLM(config)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=hidden,
        d_kv=hidden // heads,
        d_ff=2 * hidden,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def build_optimizers(model, recipe):
    """Muon for the matrices of the layers and AdamW for the rest; Adafactor for T5.

    T5's attention has no scaling, so its query weights start very small: steps of a fixed size (Muon, Adam) throw
    them out of their range, steps relative to the size of a weight (Adafactor) do not.
    """
    if recipe["family"] == "seq2seq":
        return [torch.optim.Adafactor(model.parameters(), lr=recipe["learning_rate"], weight_decay=0.0)]
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "layers." in name]
    inside = set(map(id, matrices))
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    adamw = torch.optim.AdamW(others, lr=recipe["learning_rate"], betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon32(matrices, lr=recipe["muon_learning_rate"]), adamw]


# --- examples --------------------------------------------------------------------------------------------------------
def examples(texts, tokenizer, recipe, rng):
    """Token ids of the documents: a list of rows, or of (source, target) pairs for the encoder-decoder."""
    if recipe["family"] == "seq2seq":
        copied = recipe.get("copied", 0)
        return [pair for text in texts for pair in text_to_text(text, tokenizer, rng, copied, recipe["longest"])]
    if recipe["family"] == "decoder":  # it must learn where a text ends
        texts = [text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token for text in texts]
    return tokenizer(texts, truncation=True, max_length=recipe["longest"])["input_ids"]


ASKED = re.compile(r" (Question: .*?) Answer: (.*?)\.(?= Question:|$)")
TURNS = re.compile(r"<\|user\|>(.*?)<\|end\|><\|assistant\|>(.*?)<\|end\|>")
PASSAGE = re.compile(r".*[.!?] ")
MARKS = [" Title: ", " In short: ", " In a word, ", " In other words: ", " Agent: "]


def text_to_text(text, tokenizer, rng, copied=0.0, longest=128):
    """The pairs that one document gives: every question with its answer, or one task drawn at random.

    That share `copied` of the documents becomes "its sentences in another order, and the one that comes first":
    every token of the target is then copied from the source, which is what answers and titles need before all else.
    """
    if rng.random() < copied and "<|" not in text:
        return [first_sentence(text, tokenizer, rng, longest)]
    found = ASKED.findall(text)
    pairs = [(ASKED.sub("", text) + " " + question, answer) for question, answer in found]
    if turns := TURNS.findall(text):  # later questions are about the text that the first one came with
        told = PASSAGE.match(turns[0][0])
        pairs = [turns[0], *((f"{told[0]}{asked}" if told else asked, answer) for asked, answer in turns[1:])]
    mark = next((mark for mark in MARKS if mark in text), None)
    if mark and rng.random() < 0.7:
        before, after = text.split(mark, 1)
        pairs = [(before + mark.rstrip(), after)]
    if pairs:
        return [
            (tokenizer(a, truncation=True, max_length=longest)["input_ids"], tokenizer(b)["input_ids"])
            for a, b in pairs
        ]
    draw = rng.random()
    if draw < 0.25:
        return [first_sentence(text, tokenizer, rng, longest)]
    ids = tokenizer(text, truncation=True, max_length=longest)["input_ids"][:-1]
    if draw < 0.45 and len(ids) > 8:  # how it goes on
        cut = int(rng.integers(len(ids) // 3, 2 * len(ids) // 3))
        return [([*ids[:cut], tokenizer.eos_token_id], [*ids[cut:], tokenizer.eos_token_id])]
    return [span_corruption(ids, tokenizer, rng)]


def first_sentence(text, tokenizer, rng, longest=128):
    """The sentences of a text in another order, and the one that comes first."""
    sentences = text.split(". ")
    order = rng.permutation(len(sentences))
    source, target = ". ".join(sentences[i] for i in order), sentences[order[0]]
    return tokenizer(source, truncation=True, max_length=longest)["input_ids"], tokenizer(target)["input_ids"]


def span_corruption(ids, tokenizer, rng, share=0.25, mean_length=3, most=16):
    """T5's objective: spans are replaced by `<extra_id_N>`, and the target names each span after its mark."""
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    count = max(1, min(most, round(len(ids) * share / mean_length)))
    starts = np.sort(rng.choice(max(len(ids), count), count, replace=False))
    source, target, position, mark = [], [], 0, first
    for start in starts:
        if start < position:
            continue
        end = min(len(ids), int(start) + int(rng.poisson(mean_length - 1)) + 1)
        source += [*ids[position:start], mark]
        target += [mark, *ids[start:end]]
        position, mark = end, mark + 1
    return [*source, *ids[position:], tokenizer.eos_token_id], [*target, tokenizer.eos_token_id]


# --- losses ----------------------------------------------------------------------------------------------------------
def pad(rows, value):
    """Rows of token ids as one tensor, filled up on the right."""
    padded = torch.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return padded


def loss(model, batch, tokenizer, recipe, rng):
    """Mean loss per predicted token of a batch of examples."""
    return LOSSES[recipe["family"]](model, batch, tokenizer, recipe, rng)


def masked_language_model(model, rows, tokenizer, recipe, rng):
    """BERT's objective with 30 % masked: 80 % of them [MASK], 10 % another token, 10 % left as they are.

    With `rated`, that share of the rows with stars loses them, and the model says them from the mean over the row: an
    objective for the whole text, on the path that a classifier takes later.
    """
    rows, stars = without_stars(rows, tokenizer, recipe.get("rated", 0), rng)
    ids = pad(rows, tokenizer.pad_token_id)
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chosen = torch.from_numpy(rng.random(ids.shape) < recipe["masked"]) & ~special
    how = torch.from_numpy(rng.random(ids.shape))
    corrupted = ids.masked_fill(chosen & (how < 0.8), tokenizer.mask_token_id)
    other = torch.from_numpy(rng.integers(len(tokenizer.all_special_ids), len(tokenizer), ids.shape))
    corrupted = torch.where(chosen & (how > 0.9), other, corrupted)
    real = ids != tokenizer.pad_token_id
    hidden = model.model(corrupted, attention_mask=real.long()).last_hidden_state
    logits = model.decoder(model.head(hidden[chosen]))  # of the masked tokens only
    masked = torch.nn.functional.cross_entropy(logits, ids[chosen])
    if not stars:
        return masked
    rated = torch.tensor(list(stars))
    mean = (hidden[rated] * real[rated].unsqueeze(-1)).sum(1) / real[rated].sum(1, keepdim=True)
    logits = model.decoder(model.head(mean))
    return masked + torch.nn.functional.cross_entropy(logits, torch.tensor(list(stars.values())))


def without_stars(rows, tokenizer, share, rng):
    """The rows, some without their "Rating: 4 out of 5.", and {number of such a row: the token of its stars}."""
    if not share:
        return rows, {}
    rating, colon = tokenizer.convert_tokens_to_ids(["rating", ":"])
    kept, stars = [], {}
    for row in rows:
        starts = np.flatnonzero(row == rating)
        starts = [i for i in starts if i + 6 < len(row) and row[i + 1] == colon]
        if starts and rng.random() < share:
            stars[len(kept)] = int(row[starts[0] + 2])
            row = np.delete(row, range(starts[0], starts[0] + 7))
        kept.append(row)
    return kept, stars


def next_token(model, rows, tokenizer, recipe, rng):
    """Every token from those before it. Padding is on the right, where a causal model never looks."""
    ids = pad(rows, tokenizer.pad_token_id)
    real = ids[:, 1:] != tokenizer.pad_token_id
    hidden = model.model(ids[:, :-1]).last_hidden_state[real]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[:, 1:][real])


def text_from_text(model, pairs, tokenizer, recipe, rng):
    """Every token of the target from the source and the target's tokens before it."""
    sources = pad([source for source, _ in pairs], tokenizer.pad_token_id)
    targets = pad([target for _, target in pairs], -100)
    mask = (sources != tokenizer.pad_token_id).long()
    return model(input_ids=sources, attention_mask=mask, labels=targets).loss


LOSSES = {"encoder": masked_language_model, "decoder": next_token, "seq2seq": text_from_text}
