"""What the tests of models that write share: small texts, tokenizers with a chat template, and untrained models."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

TEXTS = [
    f"The {thing} number {n} is {colour}, and the customer asks for the {thing} again."
    for n in range(9)
    for thing in ("lamp", "parcel", "kettle", "box", "book")
    for colour in ("red", "green", "blue", "old", "good")
]


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
