"""`python tests/bench_generation.py`: what padding costs a model that writes, in training and in writing.

Prints tokens that count for something per second; asserts nothing. CPU seconds on a CPU, so that a busy machine counts
for neither side.
"""

import time

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    set_seed,
)

from helpers import data, env, generate, text


def clock():
    """Seconds: of the processor on a CPU, of the wall on a GPU once it has done its work."""
    if env.device() == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def training(tokenizer, path, rows=160, batch=16):
    """Real tokens (no padding) a second of the training step, by the way a batch is put together."""
    talks = data.to_messages(data.read(env.DATA / "titles" / "train.json"), prompt="{review}", answer="title")
    examples = list(text.tokenize_chat(talks.select(range(rows)), tokenizer))
    by_length = sorted(examples, key=lambda example: example.pop("length"))
    longest = DataCollatorForSeq2Seq(tokenizer, padding="max_length", max_length=512)
    ways = {
        "padded to 512": (longest, examples[: 2 * batch]),
        "padded to the longest": (DataCollatorForSeq2Seq(tokenizer), examples),
        "grouped by length": (DataCollatorForSeq2Seq(tokenizer), by_length),
        "packed": (DataCollatorWithFlattening(), examples),
    }
    found = {}
    for name, (collate, chosen) in ways.items():
        set_seed(0)
        model = AutoModelForCausalLM.from_pretrained(path).to(env.device()).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        batches = [collate(chosen[i : i + batch]) for i in range(0, len(chosen), batch)]
        for step, inputs in enumerate([batches[0], *batches]):  # the first step is slow: not counted
            if step == 1:
                started = clock()
            inputs = {key: value.to(model.device) for key, value in inputs.items() if hasattr(value, "to")}
            model(**inputs, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found[name] = sum(len(example["input_ids"]) for example in chosen) / (clock() - started)
    return found


def writing(tokenizer, path, rows=64):
    """New tokens a second of greedy writing, by the number of prompts in a batch; the texts are the same."""
    model = AutoModelForCausalLM.from_pretrained(path).to(env.device())
    prompts = data.read(env.DATA / "titles" / "validation.json")["review"][:rows]
    found, texts = {}, {}
    for size in (1, 8, 32):
        started = clock()
        texts[size] = generate.texts(
            model, tokenizer, prompts, batch_size=size, max_new_tokens=24, min_new_tokens=24, eos_token_id=None
        )
        found[f"{size} at once"] = 24 * rows / (clock() - started)
    same = sum(a == b == c for a, b, c in zip(*texts.values(), strict=True))
    print(f"{same} of {rows} texts are the same for every batch size")
    return found


def main():
    env.quiet()
    path = env.model_path("tiny-decoder")
    tokenizer = AutoTokenizer.from_pretrained(path)
    for what, found in {"training": training(tokenizer, path), "writing": writing(tokenizer, path)}.items():
        slowest = min(found.values())
        for name, speed in found.items():
            print(f"{what}, {name}: {speed:,.0f} tokens/s, {speed / slowest:.1f} times the slowest")


if __name__ == "__main__":
    main()
