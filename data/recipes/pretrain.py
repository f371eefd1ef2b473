"""Pre-train a tiny model from nothing: one command, a progress bar, a log, checkpoints, exact resume.

    python data/recipes/pretrain.py tiny-encoder                # data/models/tiny-encoder (refuses to overwrite)
    python data/recipes/pretrain.py tiny-encoder --out runs/x   # elsewhere; the same command again resumes

Every random choice depends only on the seed and the number of the step, so a run that was interrupted and resumed
ends with the same weights as one that was not.
"""

import argparse
import functools
import itertools
import json
import math
import time
from pathlib import Path

import families
import numpy as np
import torch
from corpus import Corpus, train_tokenizer, train_writing_tokenizer
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging

MODELS = Path(__file__).parents[1] / "models"
COMMON = dict(evaluation_documents=2_000, max_length=512, longest=128, layers=4, seed=1)
RECIPES = {
    "tiny-encoder": dict(
        **COMMON,
        family="encoder",
        phases=[
            dict(mixture="general", documents=400_000, tokens=15_000_000),
            dict(mixture="judgements", documents=200_000, tokens=8_000_000),
            dict(mixture="opinions", documents=300_000, tokens=12_000_000),
            dict(mixture="ratings", documents=110_000, tokens=3_500_000, rated=0.7),
        ],
        vocabulary=8_192,
        hidden=160,
        heads=5,
        batch_tokens=4_096,
        masked=0.3,
        learning_rate=2e-3,
        muon_learning_rate=0.02,
        warmup=0.04,
    ),
    "tiny-decoder": dict(
        **COMMON | dict(longest=192),
        family="decoder",
        phases=[dict(mixture="tasks", documents=190_000, tokens=14_000_000)],
        vocabulary=4_096,
        hidden=160,
        heads=5,
        batch_tokens=2_048,
        learning_rate=2e-3,
        muon_learning_rate=0.02,
        warmup=0.04,
    ),
    "tiny-seq2seq": dict(
        **COMMON | dict(longest=192),
        family="seq2seq",
        phases=[
            dict(mixture="tasks", documents=30_000, tokens=2_500_000, copied=0.8),
            dict(mixture="tasks", documents=80_000, tokens=8_000_000, copied=0.2),
        ],
        vocabulary=4_096,
        hidden=128,
        heads=4,
        batch_tokens=2_048,
        learning_rate=3e-2,
        warmup=0.03,
    ),
}
TOKENIZERS = {
    "encoder": train_tokenizer,
    "decoder": train_writing_tokenizer,
    "seq2seq": functools.partial(train_writing_tokenizer, ends=True),
}


def prepare(recipe, folder, tokenizer=None):
    """Tokenizer, trained here unless given, and examples of the corpus; made once and kept in `folder`."""
    if not (folder / "tokens.npz").exists():
        print("writing the corpus ...", flush=True)
        corpus = Corpus(recipe["seed"], recipe["mixture"])
        texts = list(corpus.documents(recipe["documents"] + recipe["evaluation_documents"]))
        if tokenizer is None:
            trained_on = texts[: recipe["documents"]][::4]
            tokenizer = TOKENIZERS[recipe["family"]](trained_on, recipe["vocabulary"], recipe["max_length"])
        tokenizer.save_pretrained(folder / "tokenizer")
        rng, ids = np.random.default_rng(recipe["seed"]), []
        for start in tqdm(range(0, recipe["documents"], 10_000), desc="tokenising"):
            part = texts[start : min(start + 10_000, recipe["documents"])]
            ids += families.examples(part, tokenizer, recipe, rng)
        evaluation = families.examples(texts[recipe["documents"] :], tokenizer, recipe, rng)
        rows = ids + evaluation
        if recipe["family"] == "seq2seq":  # source and target after each other
            rows = list(itertools.chain.from_iterable(rows))
        offsets = np.cumsum([0] + [len(row) for row in rows])
        flat = np.concatenate(rows).astype(np.uint16)
        np.savez(folder / "tokens.npz", flat=flat, offsets=offsets, evaluation=len(evaluation))
    saved = np.load(folder / "tokens.npz")
    flat, offsets = saved["flat"], saved["offsets"]
    rows = [flat[offsets[i] : offsets[i + 1]] for i in range(len(offsets) - 1)]
    if recipe["family"] == "seq2seq":
        rows = list(zip(rows[::2], rows[1::2], strict=True))
    n_train = len(rows) - int(saved["evaluation"])
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), rows[:n_train], rows[n_train:]


def size(example):
    """Tokens of an example, source and target together."""
    return sum(map(len, example)) if isinstance(example, tuple) else len(example)


def batches(rows, batch_tokens, seed):
    """All rows once, as lists of row numbers: similar lengths together, at most `batch_tokens` each, shuffled."""
    rng = np.random.default_rng(seed)
    order, found = rng.permutation(len(rows)), []
    for start in range(0, len(order), 8_192):
        group, batch = sorted(order[start : start + 8_192], key=lambda i: size(rows[i])), []
        for i in group:
            if batch and (len(batch) + 1) * size(rows[i]) > batch_tokens:
                found.append(batch)
                batch = []
            batch.append(i)
        found.append(batch)
    return [found[i] for i in rng.permutation(len(found))]


def stream(rows, batch_tokens, seed, skip):
    """Batches without end, epoch after epoch, from the one after the first `skip`."""
    for epoch in itertools.count():
        for batch in batches(rows, batch_tokens, [seed, epoch]):
            if skip:
                skip -= 1
            else:
                yield [rows[i] for i in batch]


@torch.no_grad()
def evaluate(model, rows, tokenizer, recipe):
    """Mean loss over the batches of the evaluation documents, always with the same masks."""
    model.eval()
    losses = []
    for number, batch in enumerate(batches(rows, recipe["batch_tokens"], seed=0)):
        rng = np.random.default_rng([0, number])
        losses.append(families.loss(model, [rows[i] for i in batch], tokenizer, recipe, rng).item())
    model.train()
    return float(np.mean(losses))


def schedule(done, warmup):
    """Share of the full learning rate: linear warm-up, then cosine to 2 %."""
    if done < warmup:
        return max(done / warmup, 1e-3)
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1, (done - warmup) / (1 - warmup))))


def pretrain(recipe, folder):
    """All phases one after the other, each from the weights of the one before, with a schedule of its own."""
    model, tokenizer, phases = None, None, []
    for number, phase in enumerate(recipe["phases"]):
        settings = {**recipe, **phase, "seed": recipe["seed"] + number}
        model, tokenizer, state = train(settings, folder / f"{number}-{phase['mixture']}", model, tokenizer)
        phases.append({"mixture": phase["mixture"], **state})
    return model, tokenizer, phases


def train(recipe, folder, model=None, tokenizer=None, checkpoint_s=120):
    """Train one phase to its end, from the checkpoint in `folder` if there is one: model, tokenizer and state."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, rows, evaluation_rows = prepare(recipe, folder, tokenizer)
    model = model or families.build_model(recipe, tokenizer)
    optimizers = families.build_optimizers(model, recipe)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    state = dict(step=0, tokens=0, cpu_s=0.0, log=[])
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        state = saved["state"]
        print(f"resuming at step {state['step']:,}", flush=True)
    started = time.process_time() - state["cpu_s"]
    saved_at = time.monotonic()
    bar = tqdm(total=recipe["tokens"], initial=state["tokens"], unit="tok", unit_scale=True, mininterval=5)
    model.train()
    for batch in stream(rows, recipe["batch_tokens"], recipe["seed"], skip=state["step"]):
        if state["tokens"] >= recipe["tokens"]:
            break
        share = schedule(state["tokens"] / recipe["tokens"], recipe["warmup"])
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * share
        rng = np.random.default_rng([recipe["seed"], state["step"]])
        loss = families.loss(model, batch, tokenizer, recipe, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        state["tokens"] += sum(map(size, batch))
        bar.update(state["tokens"] - bar.n)
        state["cpu_s"] = time.process_time() - started
        if state["tokens"] >= recipe["tokens"] * len(state["log"]) / 20:
            point = dict(step=state["step"], tokens=state["tokens"], cpu_s=round(state["cpu_s"]),
                         evaluation_loss=round(evaluate(model, evaluation_rows, tokenizer, recipe), 4))  # fmt: skip
            state["log"].append(point)
            bar.write(json.dumps(point))
        if time.monotonic() - saved_at > checkpoint_s:
            save(checkpoint, model, optimizers, state)
            saved_at = time.monotonic()
    save(checkpoint, model, optimizers, state)
    return model, tokenizer, state


def save(checkpoint, model, optimizers, state):
    """Write beside, then rename: an interruption never leaves half a checkpoint."""
    beside = checkpoint.with_suffix(".new")
    torch.save(dict(model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], state=state), beside)
    beside.rename(checkpoint)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="where the model goes (default: data/models/NAME)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change a setting of the recipe")
    options = parser.parse_args()
    recipe = {
        **RECIPES[options.name],
        **{key: json.loads(value) for key, value in (pair.split("=") for pair in options.set)},
    }
    out = options.out or MODELS / options.name
    if (out / "model.safetensors").exists():
        parser.error(f"{out} holds a finished model. Delete it or pass --out with another folder.")
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    model, tokenizer, phases = pretrain(recipe, out / "work")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    about = dict(recipe=recipe, parameters=model.num_parameters(), phases=phases)
    (out / "training.json").write_text(json.dumps(about, indent=1) + "\n")
    (out / "model.safetensors").chmod(0o644)
    tokens, cpu_s = sum(phase["tokens"] for phase in phases), sum(phase["cpu_s"] for phase in phases)
    print(f"{out}: {model.num_parameters():,} parameters, {tokens:,} tokens, {cpu_s:.0f} CPU s")


if __name__ == "__main__":
    main()
