"""What is wrong with a training, said before it runs.

Each check looks for a mistake, most of which notebook 08 makes on purpose: it gets the facts, and returns None, or
level, name and message of a problem.
"""

import contextlib
import gc
import inspect
import itertools
import json
import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

# torch and transformers take seconds to import, so the functions that need them import them.

MOST = 20_000  # rows that are looked at
STEPS = 6  # of the trial
IGNORED = -100  # the label that does not count


@dataclass(frozen=True)
class Problem:
    """What `preflight` found: "error" (the run will not do what you want) or "warning" (look at it), name, message.

    >>> Problem("error", "labels", "the model returns no loss. Add a column labels.")
    error, labels: the model returns no loss. Add a column labels.
    """

    level: str
    name: str
    message: str

    def __repr__(self):
        return f"{self.level}, {self.name}: {self.message}"


class Report(list):
    """The problems that `preflight` found; `names` is what they are called, `ok` whether none is an error.

    >>> Report()
    nothing found
    >>> Report([Problem("warning", "overfitting", "40 passes over 60 rows.")]).ok
    True
    """

    @property
    def ok(self):
        return all(problem.level != "error" for problem in self)

    @property
    def names(self):
        return [problem.name for problem in self]

    def __repr__(self):
        return "\n".join(map(repr, self)) or "nothing found"


def preflight(
    model,
    tokenizer,
    dataset,
    args,
    *,
    eval_dataset=None,
    data_collator=None,
    compute_metrics=None,
    preprocess_logits_for_metrics=None,
    callbacks=(),
    compute_loss_func=None,
    loss_is_scaled_for_ga=None,
    resume_from_checkpoint=None,
    device=None,
):
    """What is wrong with a training before it runs: a list of problems, empty for a run that looks healthy.

    The arguments are those of the `Trainer` and of its `train`, and its attribute `loss_is_scaled_for_ga`; `dataset` is
    what is trained on. `device` says where it has to fit ("cuda", or so many GiB); without it memory is predicted only
    for a model that is on a GPU. It looks at settings, rows (the first 20,000), adapters, and two batches as the
    collator makes them; then it trains six steps on these, and puts weights, gradients, modes and random numbers back.
    These steps have the model's own loss, also with a `compute_loss_func`. What it does not find may still be wrong.

    >>> import transformers
    >>> small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    >>> model = transformers.BertForSequenceClassification(transformers.BertConfig(**small))
    >>> rows = [{"input_ids": [2, 7, 9], "attention_mask": [1, 1, 1], "labels": label} for label in (0, 1, 2)]
    >>> preflight(model, None, rows, transformers.TrainingArguments("runs/none", report_to="none"))
    error, labels: row 3 has the label 2, the model has 2 (0 to 1). Correct it, or load the model with num_labels=3.

    Taught in notebooks/08_break_it.ipynb, "One call before training".
    """
    settings = {name: value for name, value in locals().items() if name != "dataset"}
    facts, found = _Facts(rows=dataset, **settings), Report()
    for check in CHECKS:
        if check not in TRIED or SPOILED.isdisjoint(found.names):
            problem = check(facts)
            found += [Problem(*problem)] if problem else []
    return found


class _Facts:
    """What the checks look at, each worked out once, when the first check asks for it."""

    def __init__(self, model, rows, args, **settings):
        vars(self).update(settings, model=model, rows=rows, args=args)
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config, self.kind = self.base.config, type(self.base).__name__
        self.where = "cuda" if model.device.type == "cuda" else "cpu"  # whose memory is asked for
        self.writes = self.kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        self.ids, self.labels = _column(rows, "input_ids"), _column(rows, "labels") or _column(rows, "label")
        together = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.per_epoch = max(1, math.ceil(len(rows) / together))
        self.steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.per_epoch)
        takes_any = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(self.base.forward).parameters.values())
        self.takes_count = getattr(self.base, "accepts_loss_kwargs", takes_any)  # as the Trainer finds out

    @property
    def added(self):
        """The losses of how many batches the Trainer adds: it trusts each to be divided by the items in all of them."""
        args, several = self.args, self.config.problem_type == "multi_label_classification"
        smoothed = args.label_smoothing_factor and not several  # by the Trainer, which divides as it should
        if not self.compute_loss_func and (smoothed or not self.takes_count):
            return 1  # it averages them
        processes = max(args.world_size, args.n_gpu) if args.average_tokens_across_devices else 1
        return processes * (1 if self.loss_is_scaled_for_ga is False else args.gradient_accumulation_steps)

    def batch(self, numbers):
        """These rows as the Trainer gives them to the model."""
        import transformers

        pad = transformers.DataCollatorWithPadding(self.tokenizer) if self.tokenizer else None
        collate = self.data_collator or pad or transformers.default_data_collator
        wanted = {*inspect.signature(self.base.forward).parameters, "label", "labels"}
        batch = collate([{name: value for name, value in self.rows[i].items() if name in wanted} for i in numbers])
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    @cached_property
    def batches(self):
        """Two batches of a few rows from all over the data: (row numbers, batch)."""
        size = min(self.args.train_batch_size, 8, len(self.rows))
        order = random.Random(0).sample(range(len(self.rows)), min(2 * size, len(self.rows)))
        return [(order[i : i + size], self.batch(order[i : i + size])) for i in range(0, len(order), size)]

    @cached_property
    def sample(self):
        """(row, tokens, labels, which tokens are no padding) of each row of these batches; none without labels."""
        found = []
        for numbers, batch in self.batches if "labels" in self.batches[0][1] else ():
            ids, rows = batch["input_ids"], [i + 1 for i in numbers]
            mask = batch.get("attention_mask", ids == ids).bool()
            found += zip(rows, ids.tolist(), batch["labels"].tolist(), mask.tolist(), strict=True)
        return found

    @property
    def answers(self):
        """(row, tokens, labels that count) of those whose tokens do not all count: that teach to answer."""
        for row, ids, labels, mask in self.sample:
            own = labels if self.config.is_encoder_decoder else itertools.compress(labels, mask)
            text, counted = list(itertools.compress(ids, mask)), [label for label in own if label != IGNORED]
            if counted and (self.config.is_encoder_decoder or len(counted) < len(text)):
                yield row, text, counted

    @cached_property
    def widest(self):
        """Tokens in a row of the batch that the longest rows make."""
        longest = sorted(range(len(self.ids)), key=lambda i: -len(self.ids[i]))[:2]
        return self.batch(longest)["input_ids"].shape[1]

    @cached_property
    def adapters(self):
        """The layers that carry adapters of peft, by name."""
        if "peft" not in sys.modules:
            return {}
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {name: layer for name, layer in self.model.named_modules() if isinstance(layer, BaseTunerLayer)}

    @cached_property
    def trial(self):
        return _trial(self)


def _column(rows, name):
    """A column of the first rows; empty where there is none."""
    if hasattr(rows, "column_names"):
        few = rows.with_format(None).select(range(min(MOST, len(rows))))
        return few[name][:] if name in rows.column_names else []
    return [row[name] for row in itertools.islice(rows, MOST) if name in row]


# Settings


def _warm_up(f):
    steps = f.args.get_warmup_steps(f.steps)
    if steps > 1 and steps >= f.steps / 2:
        return "error", "warm-up", (
            f"the rate climbs for {steps} steps and the run has {f.steps}, so it is at the rate that you set for less "
            "than half of them, or never. Give the warm-up as a share: warmup_steps=0.1."
        )  # fmt: skip


def _overfitting(f):
    epochs = f.steps / f.per_epoch
    if epochs > 5 and (f.args.eval_strategy == "no" or f.eval_dataset is None):
        return "warning", "overfitting", (
            f"{epochs:.0f} passes over {len(f.rows)} rows and no evaluation on the way: you would not see it learn "
            'them by heart. Pass eval_dataset=, eval_strategy="epoch" and load_best_model_at_end=True.'
        )  # fmt: skip


def _patience(f):
    patience = [c.early_stopping_patience for c in f.callbacks if hasattr(c, "early_stopping_patience")]
    every = f.per_epoch if f.args.eval_strategy == "epoch" else f.args.eval_steps or f.args.logging_steps
    times = 0 if f.args.eval_strategy == "no" else int(f.steps / max(1, every))
    if patience and times <= patience[0] + 1:
        return "error", "patience", (
            f"early stopping waits for {patience[0]} evaluations that are no better, and the run has {times}: it never "
            "stops early. Evaluate more often, or lower early_stopping_patience."
        )  # fmt: skip


def _best_lost(f):
    args, limit = f.args, f.args.save_total_limit
    if limit and not args.load_best_model_at_end and "no" not in (args.save_strategy, args.eval_strategy):
        return "warning", "best lost", (
            f"save_total_limit={limit} keeps the last checkpoints, not the best. Add load_best_model_at_end=True."
        )  # fmt: skip


def _resume(f):
    from transformers.trainer_utils import get_last_checkpoint

    folder, asked = Path(f.args.output_dir), f.resume_from_checkpoint
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    if last and not asked:
        return "warning", "resume", (
            f"{folder.name} holds {Path(last).name}, and this run starts over at step 0 in the same folder. To go on "
            "pass resume_from_checkpoint=True to train(); to start anew, another output_dir."
        )  # fmt: skip
    if not asked:
        return None
    start = Path((last if asked is True else asked) or folder)
    if not (start / "trainer_state.json").exists():
        return "error", "resume", (
            f"{start.name} has no trainer_state.json: optimizer and step would start over. Pass a folder checkpoint-N."
        )  # fmt: skip
    done = json.loads((start / "trainer_state.json").read_text())["global_step"]
    if done >= f.steps:
        return "error", "resume", (
            f"{start.name} is at step {done} and the run ends at step {f.steps}: nothing is left to train. Raise "
            "num_train_epochs (or max_steps), or start anew in another output_dir."
        )  # fmt: skip


def _training_memory(f):
    if f.device is None and f.where != "cuda":
        return None
    from . import memory

    args, peft = f.args, next(iter(getattr(f.model, "peft_config", {}).values()), None)
    half = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    predicted = memory.predict(
        f.config,
        batch=args.train_batch_size,
        length=f.widest,
        peft=peft,
        quantization_config=getattr(f.config, "quantization_config", None),
        task=next((task for task, (end, *_) in memory.TASKS.items() if f.kind.endswith(end)), None),
        dtype=f.model.dtype,
        optim=args.optim if args.optim in memory.OPTIMIZERS else "adamw_torch",
        activation_checkpointing=bool(args.activation_checkpointing),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        autocast=half,
        device=f.where,
    )
    fit = memory.fits(predicted, f.device or f.where)
    if fit.answer != "yes":
        level = "error" if fit.answer == "no" else "warning"
        return level, "memory", f"batches of {args.train_batch_size} x {f.widest} tokens, does it fit? {fit!r}"


def _evaluation_memory(f):
    every_logit = f.compute_metrics and not f.preprocess_logits_for_metrics
    if f.eval_dataset is None or not f.writes or not every_logit or f.args.prediction_loss_only:
        return None
    from . import memory

    shape = (len(f.eval_dataset), f.widest, f.config.vocab_size)
    kept = memory.Prediction(4 * math.prod(shape), {}, "evaluation", device="cpu")
    if memory.fits(kept, f.device or f.where).answer != "yes":
        return "error", "evaluation memory", (
            "evaluation keeps the logits of {} rows x {} tokens x {} words: ".format(*shape) + f"{kept.peak_gib:.2g} "
            "GiB. Keep what the metric needs: preprocess_logits_for_metrics=metrics.keep_argmax."
        )  # fmt: skip


# Rows and labels


def _vocabulary(f):
    known = f.base.get_input_embeddings().weight.shape[0]
    for row, ids in enumerate(f.ids, 1):
        if max(ids, default=0) >= known:
            return "error", "vocabulary", (
                f"row {row} has the token {max(ids)}, the model has {known}. Tokenise with the model's own tokenizer, "
                "or call model.resize_token_embeddings(len(tokenizer))."
            )  # fmt: skip


def _labels(f):
    rows = [label if isinstance(label, list) else [label] for label in f.labels]
    if not rows and "labels" not in f.batches[0][1]:
        return "error", "labels", "the rows have no column labels, so there is no loss. Add it: text.tokenize does."
    n = f.base.get_input_embeddings().weight.shape[0] if f.writes else f.config.num_labels
    empty = [i for i, labels in enumerate(rows, 1) if all(label == IGNORED for label in labels)]
    if len(empty) > len(rows) / 10:
        return "error", "nothing counts", (
            f"in {len(empty)} of {len(rows)} rows (the first is row {empty[0]}) every label is -100: nothing counts, "
            "nothing is learned. Look at one with text.preview: the mask does not find the answer in the text."
        )  # fmt: skip
    if f.config.problem_type in ("regression", "multi_label_classification") or (n == 1 and not f.writes):
        return None
    for row, labels in enumerate(rows, 1):
        for label in labels:
            if isinstance(label, str) or not (0 <= label < n or label == IGNORED):
                cure = "" if f.writes or isinstance(label, str) else f", or load the model with num_labels={label + 1}"
                return (
                    "error",
                    "labels",
                    f"row {row} has the label {label}, the model has {n} (0 to {n - 1}). Correct it{cure}.",
                )
    missing = set() if f.writes or not rows else set(range(n)).difference(*rows)
    if missing and len(f.rows) <= MOST:
        names = ", ".join(str(f.config.id2label.get(label, label)) for label in sorted(missing))
        return (
            "warning",
            "class missing",
            f"no row has {names}, so it is not learned. Shuffle before you cut: data.split.",
        )


def _leak(f):
    known = {tuple(ids): row for row, ids in reversed([*enumerate(f.ids, 1)])}
    held_out = (
        [] if f.eval_dataset is None or isinstance(f.eval_dataset, dict) else _column(f.eval_dataset, "input_ids")
    )
    leaks = [(row, known[tuple(ids)]) for row, ids in enumerate(held_out, 1) if tuple(ids) in known]
    if leaks:
        return "error" if len(leaks) > len(held_out) / 100 else "warning", "leak", (
            f"{len(leaks)} of {len(held_out)} evaluation rows are trained on too (row {leaks[0][0]} is training row "
            f"{leaks[0][1]}). Take them out of the training rows: data.without_overlaps."
        )  # fmt: skip


def _metric(f):
    """What the metrics say of a model that answers every row with the most frequent class."""
    labels = [] if f.eval_dataset is None or f.writes or not f.compute_metrics else _column(f.eval_dataset, "labels")
    if not labels or not isinstance(labels[0], int):
        return None
    import torch
    import transformers

    often, count = Counter(labels).most_common(1)[0]
    logits = torch.eye(f.config.num_labels)[[often] * len(labels)]
    if f.preprocess_logits_for_metrics:
        logits = f.preprocess_logits_for_metrics(logits, torch.tensor(labels))
    scores = f.compute_metrics(transformers.EvalPrediction(np.asarray(logits), np.asarray(labels)))
    if count > 0.6 * len(labels) and min(scores.values()) > 0.6:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
        return "warning", "metric", (
            f"always answering {f.config.id2label.get(often, often)} scores {shown} on the evaluation rows: a model "
            "that learned nothing would look good. Add a metric that counts each class alike, such as f1_macro."
        )  # fmt: skip


def _padding(f):
    masks = [mask for *_, mask in f.sample] or [[True]]
    share = 1 - sum(map(sum, masks)) / sum(map(len, masks))
    width, longest = max(map(len, masks)), max(map(sum, masks))
    if share > 0.8 and width > 2 * longest:
        return "warning", "padding", (
            f"{share:.0%} of a batch is padding: it is {width} wide, its longest row has {longest} tokens. Do not pad "
            "in the tokenizer call; the collator pads each batch to its own longest row."
        )  # fmt: skip


def _padding_counts(f):
    for row, ids, labels, mask in f.sample:
        if not isinstance(labels, list):
            return None
        pairs = zip(labels, mask, strict=True) if len(ids) == len(labels) and not f.config.is_encoder_decoder else []
        padded = [label for label, real in pairs if not real and label != IGNORED]
        if f.config.is_encoder_decoder and labels[-1] == f.config.pad_token_id:
            padded = labels[-1:]
        if padded:
            return "error", "padding counts", (
                f"row {row}: padding has the label {padded[0]}, so the model is trained to write padding. Padding "
                "needs the label -100: DataCollatorForSeq2Seq gives it."
            )  # fmt: skip


def _never_stops(f):
    ends = [
        getattr(of, "eos_token_id", None) for of in (f.tokenizer, f.config, getattr(f.base, "generation_config", None))
    ]
    ends = {end for one in ends for end in (one if isinstance(one, list) else [one])}
    answers = list(f.answers) if f.writes else []
    open_ended = [(row, text) for row, text, counted in answers if counted[-1] not in ends]
    if len(open_ended) > len(answers) / 10:
        row, text = open_ended[0]
        why = "the end is there, but has the label -100. If padding and the end are one token, give padding its own."
        why = (
            why
            if text[-1] in ends
            else "the end is not there. Add tokenizer.eos_token, and look for rows that were cut."
        )
        return (
            "error",
            "never stops",
            f"{len(open_ended)} of {len(answers)} answers do not learn to end (row {row}): {why}",
        )


def _template(f):
    if not f.writes or not getattr(f.tokenizer, "chat_template", None):
        return None
    talk, template = [{"role": "user", "content": "a"}], f.tokenizer.apply_chat_template
    without, opened = (template(talk, add_generation_prompt=opens)["input_ids"] for opens in (False, True))
    opening, answers = opened[len(without) :], list(f.answers)
    plain = [row for row, text, _ in answers if not _holds(text, opening)]
    if len(plain) > len(answers) / 2:
        return "error", "template", (
            f'{len(plain)} of {len(answers)} rows have no "{f.tokenizer.decode(opening)}" (row {plain[0]}): they are '
            "not in the chat template that prompts will be in. Use one form for both: text.tokenize_chat."
        )  # fmt: skip


def _holds(text, part):
    return any(text[i : i + len(part)] == part for i in range(len(text)))


# The model and its adapters


def _four_bit(layer):
    return "4bit" in type(layer).__name__


def _head(f):
    """A new head has a bias of zeros, or none; one that was trained before may well be frozen."""
    body = getattr(f.base, f.base.base_model_prefix, None)
    for name, top in f.base.named_children() if not f.writes else ():
        heads = [layer for layer in top.modules() if getattr(layer, "out_features", None) == f.config.num_labels]
        if top is body or not heads or any(p.requires_grad for p in top.parameters()):
            continue
        if _four_bit(heads[0]):
            return "error", "quantised head", (
                f"{name} is new, in 4 bits and not trained: it stays as random as it was made. Load the base with "
                f'llm_int8_skip_modules=["{name}"] and give the adapter task_type="SEQ_CLS".'
            )  # fmt: skip
        if heads[0].bias is None or not heads[0].bias.any():
            return "error", "frozen head", (
                f"{name} is new (its bias is all zeros) and not trained: it stays as random as it was made. Set its "
                f'requires_grad, or modules_to_save=["{name}"] in the configuration of the adapter.'
            )  # fmt: skip


def _adapter(f):
    layers = f.adapters.values()
    merged = [layer for layer in layers if layer.merged]
    if any(_four_bit(layer.get_base_layer()) for layer in merged):
        return "error", "merged in four bits", (
            f"in {len(merged)} layers the adapter is merged into 4-bit weights, which were rounded again: the answers "
            "are not those that you trained. Load the base anew; when training is done, merge into base.dequantize()."
        )  # fmt: skip
    if merged or any(layer.disable_adapters for layer in layers):
        state, cure = ("merged", "unmerge_adapter") if merged else ("switched off", "enable_adapter_layers")
        return "error", "adapter", f"the adapter is {state}, so it is not trained. Call model.{cure}() first."
    own = [p for layer in layers for name, p in layer.named_parameters() if "base_layer" not in name]
    if own and not any(p.requires_grad for p in own):
        return "error", "adapter", "the adapter was loaded frozen, so it is not trained: pass is_trainable=True."
    newest = next(reversed(getattr(f.model, "peft_config", {})), None)  # none when the layers were put in by hand
    for layer in layers:
        inactive = newest in getattr(layer, "lora_B", ()) and newest not in layer.active_adapters
        if inactive and not layer.lora_B[newest].weight.any():
            return "error", "adapter", (
                f"the adapter {newest} is new (its B is all zeros) and not active, so it is not trained; others are. "
                f'Call model.set_adapter("{newest}") first.'
            )  # fmt: skip


def _overwritten(f):
    if not f.adapters or not hasattr(f.model, "get_base_model"):
        return None
    from peft import PeftModel

    def carries_it_too(one):
        with contextlib.suppress(AttributeError):  # one whose making failed half-way has no base
            return one is not f.model and one.get_base_model() is f.base

    alive = [one for one in gc.get_objects() if issubclass(type(one), PeftModel)]
    layers, known = f.adapters.values(), set(f.model.peft_config)
    stray = {key for layer in layers for kind in layer.adapter_layer_names for key in getattr(layer, kind)} - known
    if stray or isinstance(f.base, PeftModel) or any(map(carries_it_too, alive)):
        return "error", "adapter overwritten", (
            "the base carries the adapter of another PeftModel too, and both write into the same layers. Keep one "
            "PeftModel, on a base that was loaded anew, and add to it: model.load_adapter(folder, name)."
        )  # fmt: skip


def _frozen(f):
    if any(map(_four_bit, f.model.modules())) and not hasattr(f.model, "peft_config"):
        return "error", "merged in four bits", (
            "4-bit weights without an adapter cannot be trained. If one was merged into them, they were rounded again: "
            "load the base anew, and add an adapter with get_peft_model."
        )  # fmt: skip
    if not any(p.requires_grad for p in f.model.parameters()):
        return "error", "no gradient", "no weight has requires_grad, so nothing is trained. Unfreeze what shall learn."


# The trial


def _accumulation(f):
    if f.added > 1 and f.trial.ignores_count:
        model = "model.get_base_model()" if f.base is not f.model else "model"
        whose, cure = "the model's loss", f"Set {model}.accepts_loss_kwargs = False before the Trainer is made."
        if f.compute_loss_func:
            whose, cure = "compute_loss_func", "Let it return the sum of the losses, divided by num_items_in_batch."
        return "warning", "accumulation", (
            f"{whose} is a mean that ignores num_items_in_batch, so the Trainer adds those of {f.added} small batches "
            f"instead of averaging them: loss and gradients are {f.added} times too large. {cure}"
        )  # fmt: skip


def _no_gradient(f):
    sizes = {name: p.numel() for name, p in f.model.named_parameters() if p.requires_grad}
    left = [name for name in sizes if name not in f.trial.reached]
    if f.trial.during and sum(sizes[name] for name in left) > sum(sizes.values()) / 2:
        return "error", "no gradient", (
            f"no gradient arrives at {left[0]} and {len(left) - 1} others. Look for a layer between it and the loss "
            "that is unused, or cut off by detach or no_grad."
        )  # fmt: skip


def _loss(f):
    rate, before, during, after = f.args.learning_rate, f.trial.before, f.trial.during, f.trial.after
    if before is None:
        return "error", "labels", "the model returns no loss. Give the rows a column labels."
    if not 1e-6 < before < math.inf:
        return "error", "loss", (
            f"the loss is {before:g} before any training. Look at the labels of a batch, and at the dtype: fp16 "
            "overflows where bf16 and fp32 do not."
        )  # fmt: skip
    shown, later = f"{STEPS} trial steps at the rate {rate:g}", float(np.mean(during[1:] or [before]))
    if not later < 2 * before + 1:
        return (
            "error",
            "learning rate",
            f"in {shown} the loss rose from {before:.2f} to {later:.2f}. Try a tenth of the rate.",
        )
    moved = max(
        (abs(a - b) for a, b in zip(during[2:], during, strict=False)), default=0
    )  # the same batch, two steps on
    if f.steps > 20 and moved < 0.2 * before and (1 - after / before) * f.steps / STEPS < 0.2:
        return "error", "learning rate", (
            f"{shown} took the loss of their own rows from {before:.3f} to {after:.3f}: in {f.steps} steps hardly "
            "anything will be learned. Try ten times the rate."
        )  # fmt: skip


@dataclass
class _Trial:
    """The mean loss of the two batches before and after the steps, that of each step, which weights had a gradient.

    And whether the Trainer's loss stays the same when it is told of twice as many items.
    """

    before: float | None = None
    after: float = math.nan
    during: list = field(default_factory=list)
    reached: set = field(default_factory=set)
    ignores_count: bool = False


def _trial(f):
    import torch
    import transformers

    model, args, batches, found = f.model, f.args, [batch for _, batch in f.batches], _Trial()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    half = torch.autocast(
        model.device.type, torch.float16 if args.fp16 else torch.bfloat16, enabled=args.fp16 or args.bf16
    )

    def loss(batch):
        with half:
            return model(**batch).loss

    def mean_loss():
        with torch.no_grad():
            return sum(loss(batch).item() for batch in batches) / len(batches)

    def loss_of(count):
        """What the Trainer takes for the share of a batch in the loss of so many items."""
        batch, told = dict(batches[0]), {"num_items_in_batch": torch.tensor(count, device=model.device)}
        labels = batch.pop("labels") if f.compute_loss_func else None
        with half, torch.no_grad():
            outputs = model(**batch, **(told if f.takes_count else {}))
            return (f.compute_loss_func(outputs, labels, **told) if f.compute_loss_func else outputs.loss).item()

    with _as_it_was(model):
        model.eval()
        with torch.no_grad():
            if loss(batches[0]) is None:
                return found
        found.before = mean_loss()
        if f.added > 1:
            share = loss_of(100)
            found.ignores_count = share != 0 and math.isclose(share, loss_of(200), rel_tol=1e-3)
        model.train()
        if args.activation_checkpointing:
            model.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
        kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
        optimizer = kind(trained.values(), weight_decay=args.weight_decay, **options)
        for step in range(STEPS):
            for group in optimizer.param_groups:  # a short warm-up, as most runs have
                group["lr"] = args.learning_rate * min(1, (step + 1) / 3)
            now = loss(batches[step % len(batches)])
            found.during.append(now.item())
            if not now.requires_grad:
                break
            now.backward()
            found.reached |= {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
            torch.nn.utils.clip_grad_norm_(trained.values(), args.max_grad_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        found.after = mean_loss()
    return found


@contextlib.contextmanager
def _as_it_was(model):
    """Puts back all that the trial changes in a model, and the random numbers."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    changed = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
    before = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in changed]
    gradients = [(p, p.grad) for p in model.parameters()]
    numbers, checkpointing = (random.getstate(), np.random.get_state()), model.is_activation_checkpointing
    hooks = getattr(model, "_require_grads_hooks", None)  # of checkpointing; to switch it off leaves them
    with torch.random.fork_rng():
        try:
            for p, _ in gradients:
                p.grad = None
            yield
        finally:
            if model.is_activation_checkpointing and not checkpointing:
                model.activation_checkpointing_disable()
                if not hooks:
                    model.disable_input_require_grads()
            with torch.no_grad():
                for tensor, old in before:
                    tensor.copy_(old)
            for p, gradient in gradients:
                p.grad = gradient
            for module, training in modes:
                module.training = training
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])


TRIED = (_accumulation, _no_gradient, _loss)
SPOILED = {  # no trial with these
    "vocabulary", "labels", "nothing counts", "quantised head", "merged in four bits", "no gradient", "memory",
}  # fmt: skip
CHECKS = (
    _warm_up, _overfitting, _patience, _best_lost, _resume, _training_memory, _evaluation_memory, _vocabulary, _labels,
    _leak, _metric, _padding, _padding_counts, _never_stops, _template, _head, _adapter, _overwritten, _frozen, *TRIED,
)  # fmt: skip
