"""Pre-train a tiny model from nothing: one command, a progress bar, a log, checkpoints, exact resume.

    python data/recipes/pretrain.py tiny-encoder                # data/models/tiny-encoder (refuses to overwrite)
    python data/recipes/pretrain.py tiny-encoder --out runs/x   # elsewhere; the same command again resumes

Every random choice depends only on the seed and the number of the step, so a run that was interrupted and resumed
ends with the same weights as one that was not.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from corpus import Corpus, train_tokenizer
from muon import Muon32
from tqdm import tqdm
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM
from transformers.utils import logging

MODELS = Path(__file__).parents[1] / "models"
RECIPES = {
    "tiny-encoder": dict(
        phases=[
            dict(mixture="general", documents=400_000, tokens=15_000_000),
            dict(mixture="judgements", documents=200_000, tokens=8_000_000),
        ],
        evaluation_documents=2_000,
        vocabulary=8_192,
        max_length=512,
        hidden=160,
        layers=4,
        heads=5,
        batch_tokens=4_096,
        masked=0.3,
        learning_rate=2e-3,
        muon_learning_rate=0.02,
        warmup=0.04,
        seed=1,
    ),
}


def build_model(recipe, tokenizer):
    config = ModernBertConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=recipe["hidden"],
        num_hidden_layers=recipe["layers"],
        num_attention_heads=recipe["heads"],
        intermediate_size=2 * recipe["hidden"],
        max_position_embeddings=recipe["max_length"],
        global_attn_every_n_layers=1,
        classifier_pooling="mean",
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    torch.manual_seed(recipe["seed"])
    return ModernBertForMaskedLM(config)


def prepare(recipe, folder, tokenizer=None):
    """Tokenizer, trained here unless given, and token ids of the corpus; made once and kept in `folder`."""
    if not (folder / "tokens.npz").exists():
        print("writing the corpus ...", flush=True)
        corpus = Corpus(recipe["seed"], recipe["mixture"])
        texts = list(corpus.documents(recipe["documents"] + recipe["evaluation_documents"]))
        if tokenizer is None:
            tokenizer = train_tokenizer(texts[: recipe["documents"]][::4], recipe["vocabulary"], recipe["max_length"])
        tokenizer.save_pretrained(folder / "tokenizer")
        ids = []
        for start in tqdm(range(0, len(texts), 10_000), desc="tokenising"):
            ids += tokenizer(texts[start : start + 10_000], truncation=True, max_length=128)["input_ids"]
        offsets = np.cumsum([0] + [len(row) for row in ids])
        np.savez(folder / "tokens.npz", flat=np.concatenate(ids).astype(np.uint16), offsets=offsets)
    saved = np.load(folder / "tokens.npz")
    flat, offsets = saved["flat"], saved["offsets"]
    rows = [flat[offsets[i] : offsets[i + 1]] for i in range(len(offsets) - 1)]
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), rows[: recipe["documents"]], rows[recipe["documents"] :]


def batches(rows, batch_tokens, seed):
    """All rows once, as lists of row numbers: similar lengths together, at most `batch_tokens` each, shuffled."""
    rng = np.random.default_rng(seed)
    order, found = rng.permutation(len(rows)), []
    for start in range(0, len(order), 8_192):
        group, batch = sorted(order[start : start + 8_192], key=lambda i: len(rows[i])), []
        for i in group:
            if batch and (len(batch) + 1) * len(rows[i]) > batch_tokens:
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


def masked_language_model_loss(model, rows, tokenizer, masked, rng):
    """BERT's objective with 30 % masked: 80 % of them [MASK], 10 % another token, 10 % left as they are."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chosen = torch.from_numpy(rng.random(ids.shape) < masked) & ~special
    how = torch.from_numpy(rng.random(ids.shape))
    corrupted = ids.masked_fill(chosen & (how < 0.8), tokenizer.mask_token_id)
    other = torch.from_numpy(rng.integers(len(tokenizer.all_special_ids), len(tokenizer), ids.shape))
    corrupted = torch.where(chosen & (how > 0.9), other, corrupted)
    hidden = model.model(corrupted, attention_mask=(ids != tokenizer.pad_token_id).long()).last_hidden_state[chosen]
    return torch.nn.functional.cross_entropy(
        model.decoder(model.head(hidden)), ids[chosen]
    )  # logits of masked tokens only


@torch.no_grad()
def evaluate(model, rows, tokenizer, recipe):
    """Mean loss per masked token over the evaluation documents, always with the same masks."""
    model.eval()
    losses = []
    for number, batch in enumerate(batches(rows, recipe["batch_tokens"], seed=0)):
        rng = np.random.default_rng([0, number])
        losses.append(
            masked_language_model_loss(model, [rows[i] for i in batch], tokenizer, recipe["masked"], rng).item()
        )
    model.train()
    return float(np.mean(losses))


def build_optimizers(model, recipe):
    """Muon for the matrices of the layers, AdamW for embeddings, norms and biases."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "layers." in name]
    inside = set(map(id, matrices))
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    adamw = torch.optim.AdamW(others, lr=recipe["learning_rate"], betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon32(matrices, lr=recipe["muon_learning_rate"]), adamw]


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
        model, tokenizer, state = train(settings, folder / phase["mixture"], model, tokenizer)
        phases.append({"mixture": phase["mixture"], **state})
    return model, tokenizer, phases


def train(recipe, folder, model=None, tokenizer=None, checkpoint_s=120):
    """Train one phase to its end, from the checkpoint in `folder` if there is one: model, tokenizer and state."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, rows, evaluation_rows = prepare(recipe, folder, tokenizer)
    model = model or build_model(recipe, tokenizer)
    optimizers = build_optimizers(model, recipe)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    state = dict(step=0, tokens=0, cpu_s=0.0, log=[])
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
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
        loss = masked_language_model_loss(model, batch, tokenizer, recipe["masked"], rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        state["tokens"] += sum(map(len, batch))
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
