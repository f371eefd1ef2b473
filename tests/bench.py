"""What padding costs a classifier, and preflight a training.

`make bench` runs this file and all bench_*.py; they print, and assert nothing.
"""

import tempfile
import time
from pathlib import Path

import test_preflight
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, DataCollatorWithPadding, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from helpers import data, env, preflight, text


def training_rows_per_second(examples, collator, *, grouped, steps, batch_size=16):
    """Training throughput of a 6-layer encoder of hidden size 256 on this machine; the first step is not counted."""
    set_seed(0)
    model = BertForSequenceClassification(
        BertConfig(hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024, num_labels=10)
    )
    model.to(env.device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sampler = LengthGroupedSampler(batch_size, lengths=examples["length"][:]) if grouped else None
    loader = torch.utils.data.DataLoader(
        examples.remove_columns("length"), batch_size, shuffle=sampler is None, sampler=sampler, collate_fn=collator
    )
    for step, batch in zip(range(steps + 1), loader, strict=False):
        if step == 1:
            started = time.perf_counter()
        model(**{name: values.to(model.device) for name, values in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if env.device() == "cuda":
        torch.cuda.synchronize()
    return steps * batch_size / (time.perf_counter() - started)


def padding(steps=3):
    tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-encoder"))
    rows = data.check(data.read(env.DATA / "support" / "train.jsonl"), label="intent")
    examples = text.tokenize(rows, tokenizer, label="intent")
    to_512 = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=512)
    slow = training_rows_per_second(examples, to_512, grouped=False, steps=steps)
    fast = training_rows_per_second(examples, DataCollatorWithPadding(tokenizer), grouped=True, steps=20 * steps)
    print(f"training a 6-layer encoder on customer messages, padded to 512: {slow:.1f} rows/s")
    print(f"training a 6-layer encoder on customer messages, grouped by length: {fast:.1f} rows/s")
    print(f"grouped by length is {fast / slow:.1f} times as fast (20 or more was expected)")


def preflight_seconds():
    """CPU seconds of a preflight of each sound set-up of its tests; each should take less than 5."""
    for name, make in test_preflight.HEALTHY.items():
        with tempfile.TemporaryDirectory() as folder:
            arguments = make(Path(folder))
            started = time.process_time()
            preflight.check(**arguments)
            print(f"preflight, {name}: {time.process_time() - started:.1f} s (less than 5 was expected)")


if __name__ == "__main__":
    env.quiet()
    padding()
    preflight_seconds()
