"""What is wrong with a training, said before it runs: `preflight.check(model, tokenizer, dataset, args)`.

Each check below looks for mistakes of one kind, most of which notebook 08 makes on purpose. It gets the facts of the
run and yields a line for each problem: "error" or "warning", its name, and what was found, expected and to be done.
"""

import contextlib
import copy
import inspect
import itertools
import json
import math
import random
from collections import Counter, namedtuple
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# torch and transformers take seconds to import, so the functions that need them import them.

ROWS_READ = 20_000  # of the data set, at most
TRIAL_STEPS = 6
IGNORED = -100  # the label of a token that does not count in the loss


@dataclass(frozen=True)
class Problem:
    """What `check` found: "error" (the run will not do what you want) or "warning" (look at it), name and message.

    >>> Problem("error", "labels", "the model returns no loss. Add a column labels.")
    error, labels: the model returns no loss. Add a column labels.
    """

    level: str
    name: str
    message: str

    @classmethod
    def read(cls, line):
        """A problem from the line that it is shown as."""
        heading, _, message = line.partition(": ")
        return cls(*heading.split(", "), message)

    def __repr__(self):
        return f"{self.level}, {self.name}: {self.message}"


class Report(list):
    """The problems that `check` found; `names` is what they are called, `ok` whether none is an error.

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


def check(
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
    the training set. `device` says where the training has to fit ("cuda", or a number of GiB); without it memory is
    predicted only for a model that is on a GPU. It looks at settings, rows (the first 20,000), adapters, and two
    batches as the collator makes them. Then it trains a copy of the model on these for six steps, with the model's own
    loss even where there is a `compute_loss_func`; the copy needs memory for the weights that are trained. A run in
    which nothing is found may still be wrong.

    >>> import transformers
    >>> small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    >>> model = transformers.BertForSequenceClassification(transformers.BertConfig(**small))
    >>> rows = [{"input_ids": [2, 7, 9], "attention_mask": [1, 1, 1], "labels": label} for label in (0, 1, 2)]
    >>> check(model, None, rows, transformers.TrainingArguments("runs/none", report_to="none"))
    error, labels: row 3 has the label 2, the model has 2 (0 to 1). Correct it, or load the model with num_labels=3.

    Taught in notebooks/08_break_it.ipynb, "One call before training".
    """
    with _same_random_numbers():
        facts = Facts(
            model, tokenizer, dataset, args, eval_dataset, data_collator, compute_metrics,
            preprocess_logits_for_metrics, callbacks, compute_loss_func, loss_is_scaled_for_ga,
            resume_from_checkpoint, device,
        )  # fmt: skip
        report = Report(Problem.read(line) for look in CHECKS for line in look(facts))
        if NO_TRIAL.isdisjoint(report.names):
            report += map(Problem.read, _after_trial(facts, _trial(facts)))
    return report


@contextlib.contextmanager
def _same_random_numbers():
    """The random numbers after a check are those that would have come without it."""
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


Row = namedtuple("Row", "number tokens labels real")  # of a batch; `real` says which tokens are no padding


@dataclass
class Facts:
    """What the checks look at: the arguments of `check`, and what follows from them.

    >>> list(Facts.__dataclass_fields__)[:4]
    ['model', 'tokenizer', 'rows', 'args']
    """

    model: object
    tokenizer: object
    rows: object
    args: object
    eval_rows: object
    collator: object
    compute_metrics: object
    preprocess_logits: object
    callbacks: object
    compute_loss: object
    loss_is_scaled: object
    resume_from: object
    device: object  # where it has to fit; None: memory is not looked at

    def __post_init__(self):
        from peft.tuners.tuners_utils import BaseTunerLayer

        args, model = self.args, self.model
        self.on_gpu = model.device.type == "cuda"
        self.device = self.device or ("cuda" if self.on_gpu else None)
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config, self.kind = self.base.config, type(self.base).__name__
        self.adapter_layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        self.writes = self.kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        self.n_words = self.base.get_input_embeddings().weight.shape[0]
        self.tokens = _column(self.rows, "input_ids")
        labels = _column(self.rows, "labels") or _column(self.rows, "label")
        self.labels = [label if isinstance(label, list) else [label] for label in labels]
        rows_per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.steps_per_epoch = max(1, math.ceil(len(self.rows) / rows_per_step))
        self.steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.steps_per_epoch)
        parameters = inspect.signature(self.base.forward).parameters
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        self.takes_count = getattr(self.base, "accepts_loss_kwargs", takes_any)  # as the Trainer finds out
        self.columns = {*parameters, "label", "labels"}
        size = min(args.train_batch_size, 8, len(self.rows))
        order = random.Random(0).sample(range(len(self.rows)), min(2 * size, len(self.rows)))
        chosen = [order[start : start + size] for start in range(0, len(order), size)]
        self.batches = [self.batch(indices) for indices in chosen]  # two, of a few rows from all over the data
        self.sample = [
            row for indices, batch in zip(chosen, self.batches, strict=True) for row in _split(indices, batch)
        ]

    def batch(self, indices):
        """These rows as the Trainer gives them to the model."""
        import transformers

        padding = transformers.DataCollatorWithPadding(self.tokenizer) if self.tokenizer else None
        collate = self.collator or padding or transformers.default_data_collator
        rows = [{name: value for name, value in self.rows[i].items() if name in self.columns} for i in indices]
        return {name: tensor.to(self.model.device) for name, tensor in collate(rows).items()}

    def answers(self):
        """(row, its tokens, its labels that count) of the sampled rows that teach a writer to answer."""
        for row in self.sample if self.writes else ():
            tokens = list(itertools.compress(row.tokens, row.real))
            labels = row.labels if self.config.is_encoder_decoder else itertools.compress(row.labels, row.real)
            counted = [label for label in labels if label != IGNORED]
            if counted and (self.config.is_encoder_decoder or len(counted) < len(tokens)):
                yield row.number, tokens, counted


def _column(rows, name):
    """A column of the first rows; empty where there is none."""
    if hasattr(rows, "column_names"):
        few = rows.with_format(None).select(range(min(ROWS_READ, len(rows))))
        return few[name][:] if name in rows.column_names else []
    return [row[name] for row in itertools.islice(rows, ROWS_READ) if name in row]


def _split(indices, batch):
    """The rows of a batch that has labels."""
    if "labels" not in batch:
        return []
    mask = batch.get("attention_mask", batch["input_ids"] == batch["input_ids"])
    numbers = [i + 1 for i in indices]
    return map(Row, numbers, batch["input_ids"].tolist(), batch["labels"].tolist(), mask.bool().tolist())


def _settings(facts):
    args, steps = facts.args, facts.steps
    warm_up = args.get_warmup_steps(steps)
    if warm_up > 1 and warm_up >= steps / 2:
        yield (
            f"error, warm-up: the rate climbs for {warm_up} steps and the run has {steps}, so it is at the rate that "
            "you set for less than half of them, or never. Give the warm-up as a share: warmup_steps=0.1."
        )
    epochs = steps / facts.steps_per_epoch
    if epochs > 5 and (args.eval_strategy == "no" or facts.eval_rows is None):
        yield (
            f"warning, overfitting: {epochs:.0f} passes over {len(facts.rows)} rows, and without evaluation you would "
            'not see it learn them by heart. Pass eval_dataset=, eval_strategy="epoch" and load_best_model_at_end=True.'
        )
    patience = [c.early_stopping_patience for c in facts.callbacks if hasattr(c, "early_stopping_patience")]
    every = facts.steps_per_epoch if args.eval_strategy == "epoch" else args.eval_steps or args.logging_steps
    evaluations = 0 if args.eval_strategy == "no" else int(steps / max(1, every))
    if patience and evaluations <= patience[0] + 1:
        yield (
            f"error, patience: early stopping waits for {patience[0]} evaluations that are no better, and the run has "
            f"{evaluations}: it never stops early. Evaluate more often, or lower early_stopping_patience."
        )
    limit = args.save_total_limit
    if limit and not args.load_best_model_at_end and "no" not in (args.save_strategy, args.eval_strategy):
        yield f"warning, best lost: save_total_limit={limit} keeps the last ones only. Add load_best_model_at_end=True."


def _resume(facts):
    from transformers.trainer_utils import get_last_checkpoint

    folder, resume_from = Path(facts.args.output_dir), facts.resume_from
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    if last and not resume_from:
        yield (
            f"warning, resume: {folder.name} holds {Path(last).name}, and this run starts over at step 0 in the same "
            "folder. To go on pass resume_from_checkpoint=True to train(); to start anew, another output_dir."
        )
    if not resume_from:
        return
    start = Path((last if resume_from is True else resume_from) or folder)
    state = start / "trainer_state.json"
    done = json.loads(state.read_text())["global_step"] if state.exists() else None
    if done is None:
        yield f"error, resume: {start.name} has no trainer_state.json: it would start over. Pass a folder checkpoint-N."
    elif done >= facts.steps:
        yield (
            f"error, resume: {start.name} is at step {done} and the run ends at step {facts.steps}: nothing is left to "
            "train. Raise num_train_epochs (or max_steps), or start anew in another output_dir."
        )


def _memory(facts):
    if facts.device is None:
        return
    from . import memory

    args, config = facts.args, copy.copy(facts.config)
    config.architectures = [facts.kind]  # from it memory knows what the model does
    longest = sorted(range(len(facts.tokens)), key=lambda i: len(facts.tokens[i]))[-2:]
    size, length = args.train_batch_size, facts.batch(longest)["input_ids"].shape[1]
    predicted = memory.predict(
        config,
        batch=size,
        length=length,
        peft=next(iter(getattr(facts.model, "peft_config", {}).values()), None),
        quantization_config=getattr(config, "quantization_config", None),
        dtype=facts.model.dtype,
        optim=args.optim if args.optim in memory.OPTIMIZERS else "adamw_torch",
        activation_checkpointing=bool(args.activation_checkpointing),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        autocast="bfloat16" if args.bf16 else "float16" if args.fp16 else None,
        device="cuda" if facts.on_gpu else "cpu",
    )
    fit = memory.fits(predicted, facts.device)
    if fit.answer != "yes":
        level = "error" if fit.answer == "no" else "warning"
        yield f"{level}, memory: batches of {size} x {length} tokens, does it fit? {fit!r}"
    keeps_logits = facts.compute_metrics and not facts.preprocess_logits and not args.prediction_loss_only
    if facts.eval_rows is not None and facts.writes and keeps_logits:
        rows, words = len(facts.eval_rows), config.vocab_size
        kept = memory.Prediction(4 * rows * length * words, {}, "evaluation", device="cpu")
        if memory.fits(kept, facts.device).answer != "yes":
            yield (
                f"error, evaluation memory: the logits of {rows} rows x {length} tokens x {words} words are kept, "
                f"{kept.peak_gib:.2g} GiB. Keep less: preprocess_logits_for_metrics=metrics.keep_argmax."
            )


def _vocabulary(facts):
    largest = [max(tokens, default=0) for tokens in facts.tokens]
    foreign = [(number, token) for number, token in enumerate(largest, 1) if token >= facts.n_words]
    if foreign:
        yield (
            f"error, vocabulary: row {foreign[0][0]} has the token {foreign[0][1]}, the model has {facts.n_words}. "
            "Tokenise with the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer))."
        )


def _labels(facts):
    config, rows, n = facts.config, facts.labels, facts.n_words if facts.writes else facts.config.num_labels
    if not rows and "labels" not in facts.batches[0]:
        yield "error, labels: the rows have no column labels, so there is no loss. Add it: text.tokenize does."
    empty = [number for number, labels in enumerate(rows, 1) if all(label == IGNORED for label in labels)]
    if len(empty) > len(rows) / 10:
        yield (
            f"error, nothing counts: in {len(empty)} of {len(rows)} rows (the first is row {empty[0]}) every label is "
            "-100, so nothing is learned. Look at one with text.preview: the mask does not find the answer in the text."
        )
    if config.problem_type in ("regression", "multi_label_classification") or n == 1:
        return
    flat = ((number, label) for number, labels in enumerate(rows, 1) for label in labels)
    wrong = [pair for pair in flat if isinstance(pair[1], str) or not (0 <= pair[1] < n or pair[1] == IGNORED)]
    if wrong:
        (number, label), *_ = wrong
        can_grow = not facts.writes and not isinstance(label, str) and label >= n
        cure = f", or load the model with num_labels={label + 1}" if can_grow else ""
        yield f"error, labels: row {number} has the label {label}, the model has {n} (0 to {n - 1}). Correct it{cure}."
    missing = [] if facts.writes or len(facts.rows) > ROWS_READ else sorted(set(range(n)).difference(*rows))
    if rows and missing and not wrong:
        names = ", ".join(str(config.id2label.get(label, label)) for label in missing)
        yield f"warning, class missing: no row has {names}, so it is not learned. Shuffle before you cut: data.split."


def _leak(facts):
    if facts.eval_rows is None or isinstance(facts.eval_rows, dict):
        return
    training = {tuple(tokens): number for number, tokens in reversed([*enumerate(facts.tokens, 1)])}
    held_out = [tuple(tokens) for tokens in _column(facts.eval_rows, "input_ids")]
    leaks = [(number, training[tokens]) for number, tokens in enumerate(held_out, 1) if tokens in training]
    if leaks:
        (row, training_row), level = leaks[0], "error" if len(leaks) > len(held_out) / 100 else "warning"
        yield (
            f"{level}, leak: {len(leaks)} of {len(held_out)} evaluation rows are trained on too (row {row} is training "
            f"row {training_row}). Take them out of the training rows: data.without_overlaps."
        )


def _metric(facts):
    """What the metrics say of a model that answers every row with the most frequent class."""
    judged = facts.eval_rows is not None and facts.compute_metrics and not facts.writes
    labels = _column(facts.eval_rows, "labels") if judged else []
    if not labels or not isinstance(labels[0], int):
        return
    import torch
    import transformers

    frequent, count = Counter(labels).most_common(1)[0]
    logits = torch.eye(facts.config.num_labels)[[frequent] * len(labels)]
    if facts.preprocess_logits:
        logits = facts.preprocess_logits(logits, torch.tensor(labels))
    scores = facts.compute_metrics(transformers.EvalPrediction(np.asarray(logits), np.asarray(labels)))
    if count > 0.6 * len(labels) and min(scores.values()) > 0.6:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
        yield (
            f"warning, metric: always answering {facts.config.id2label.get(frequent, frequent)} scores {shown}, so a "
            "model that learned nothing would look good. Add a metric that counts each class alike, such as f1_macro."
        )


def _padding(facts):
    lengths, widths = [sum(row.real) for row in facts.sample], [len(row.real) for row in facts.sample]
    if facts.sample and sum(lengths) < 0.2 * sum(widths) and 2 * max(lengths) < max(widths):
        yield (
            f"warning, padding: a batch is {max(widths)} wide, its longest row has {max(lengths)} tokens. Do not pad "
            "in the tokenizer call; the collator pads each batch to its own longest row."
        )
    for row in facts.sample:
        padded = []
        if facts.writes and facts.config.is_encoder_decoder:
            padded = [label for label in row.labels[-1:] if label == facts.config.pad_token_id]
        elif isinstance(row.labels, list) and len(row.labels) == len(row.real):
            padded = [label for label, real in zip(row.labels, row.real, strict=True) if not real and label != IGNORED]
        if padded:
            yield (
                f"error, padding counts: row {row.number}: padding has the label {padded[0]}, so the model is trained "
                "to write padding. Padding needs the label -100: DataCollatorForSeq2Seq gives it."
            )
            return


def _answers(facts):
    answers, tokenizer, ends = list(facts.answers()), facts.tokenizer, set()
    for source in (tokenizer, facts.config, getattr(facts.base, "generation_config", None)):
        end = getattr(source, "eos_token_id", None)
        ends.update(end if isinstance(end, list) else [end])
    endless = [(number, tokens) for number, tokens, counted in answers if counted[-1] not in ends]
    if len(endless) > len(answers) / 10:
        number, tokens = endless[0]
        why = "the end is not there. Add tokenizer.eos_token, and look for rows that were cut."
        if tokens[-1] in ends:
            why = (
                "the end is there, but has the label -100. If padding and the end are one token, give padding its own."
            )
        yield f"error, never stops: {len(endless)} of {len(answers)} answers do not learn to end (row {number}): {why}"
    if not facts.writes or not getattr(tokenizer, "chat_template", None):
        return
    chat = [{"role": "user", "content": "a"}]
    prompt, opened = (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=o) for o in (False, True)
    )
    opening = opened.removeprefix(prompt)
    plain = [number for number, tokens, _ in answers if opening.strip() not in tokenizer.decode(tokens)]
    if len(plain) > len(answers) / 2:
        yield (
            f'error, template: {len(plain)} of {len(answers)} rows have no "{opening}" (row {plain[0]}): they are not '
            "in the chat template that prompts will be in. Use one form for both: text.tokenize_chat."
        )


def _four_bit(layer):
    return "4bit" in type(layer).__name__


def _head(facts):
    """A new head has a bias of zeros, or none; one that was trained before may well be frozen."""
    body = getattr(facts.base, facts.base.base_model_prefix, None)
    for name, top in facts.base.named_children() if not facts.writes else ():
        heads = [layer for layer in top.modules() if getattr(layer, "out_features", None) == facts.config.num_labels]
        if top is body or not heads or any(p.requires_grad for p in top.parameters()):
            continue
        if _four_bit(heads[0]):
            yield (
                f"error, quantised head: {name} is new, in 4 bits and not trained: it stays as random as it was made. "
                f'Load the base with llm_int8_skip_modules=["{name}"] and give the adapter task_type="SEQ_CLS".'
            )
        elif heads[0].bias is None or not heads[0].bias.any():
            yield (
                f"error, frozen head: {name} is new (its bias is all zeros) and not trained: it stays as random as it "
                f'was made. Set its requires_grad, or modules_to_save=["{name}"] in the configuration of the adapter.'
            )


def _adapters(facts):
    layers, model = facts.adapter_layers, facts.model
    merged = [layer for layer in layers if layer.merged]
    own = [p for layer in layers for name, p in layer.named_parameters() if "base_layer" not in name]
    newest = next(reversed(getattr(model, "peft_config", {})), None)  # none when the layers were put in by hand
    idle = [layer for layer in layers if newest in getattr(layer, "lora_B", ()) and newest not in layer.active_adapters]
    if any(_four_bit(layer.get_base_layer()) for layer in merged):
        yield (
            f"error, merged in four bits: in {len(merged)} layers the adapter is merged into 4-bit weights, which were "
            "rounded again: the answers are not those that you trained. Load the base anew; when training is done, "
            "merge into base.dequantize()."
        )
    elif merged:
        yield "error, adapter: the adapter is merged, so it is not trained. Call model.unmerge_adapter() first."
    elif any(layer.disable_adapters for layer in layers):
        yield "error, adapter: the adapter is switched off, so it is not trained. Call model.enable_adapter_layers()."
    elif own and not any(p.requires_grad for p in own):
        yield "error, adapter: the adapter was loaded frozen, so it is not trained: pass is_trainable=True."
    elif idle and not idle[0].lora_B[newest].weight.any():
        yield (
            f"error, adapter: the adapter {newest} is new (its B is all zeros) and not active, so it is not trained; "
            f'others are. Call model.set_adapter("{newest}") first.'
        )
    if layers and hasattr(model, "get_base_model") and "peft_config" not in vars(model.base_model):
        # peft keeps the list of adapters in the PeftModel that was first on a base; a second one has none of its own
        yield (
            "error, adapter overwritten: the base carried the adapter of another PeftModel already, and this one is "
            "written into the same layers. Keep one PeftModel, on a base that was loaded anew, and add to it: "
            "model.load_adapter(folder, name)."
        )


def _frozen(facts):
    if any(map(_four_bit, facts.model.modules())) and not hasattr(facts.model, "peft_config"):
        yield (
            "error, merged in four bits: 4-bit weights without an adapter cannot be trained. If one was merged into "
            "them, they were rounded again: load the base anew, and add an adapter with get_peft_model."
        )
    elif not any(p.requires_grad for p in facts.model.parameters()):
        yield "error, no gradient: no weight has requires_grad, so nothing is trained. Unfreeze what shall learn."


@dataclass
class Trial:
    """What six steps on two batches did; losses as the model returns them.

    >>> Trial().reached
    set()
    """

    before: float | None = None  # the mean loss of the two batches
    after: float = math.nan
    during: list = field(default_factory=list)  # the loss of each step
    reached: set = field(default_factory=set)  # names of the weights that had a gradient
    ignores_count: bool = False  # whether the loss is the same when it is told of twice as many items


def _trial(facts):
    """Train a copy of the model for a few steps on the two batches; weights that are frozen are shared, not copied."""
    import torch

    frozen = {id(p): p for p in facts.model.parameters() if not p.requires_grad}
    model, trial = copy.deepcopy(facts.model, frozen), Trial()
    dtype = torch.float16 if facts.args.fp16 else torch.bfloat16
    autocast = torch.autocast(model.device.type, dtype, enabled=facts.args.fp16 or facts.args.bf16)

    def mean_loss():
        with autocast, torch.no_grad():
            losses = [model.eval()(**batch).loss for batch in facts.batches]
        return None if losses[0] is None else sum(loss.item() for loss in losses) / len(losses)

    trial.before = mean_loss()
    if trial.before is not None:
        if _losses_added(facts) > 1:
            with autocast, torch.no_grad():
                shares = [_loss_of_share(facts, model, n_items) for n_items in (100, 200)]
            trial.ignores_count = shares[0] != 0 and math.isclose(*shares, rel_tol=1e-3)
        _train(model.train(), facts, trial, autocast)
        trial.after = mean_loss()
    return trial


def _loss_of_share(facts, model, n_items):
    """What the Trainer takes for the share of the first batch in the loss of so many items."""
    import torch

    batch, count = dict(facts.batches[0]), {"num_items_in_batch": torch.tensor(n_items, device=model.device)}
    labels = batch.pop("labels") if facts.compute_loss else None
    outputs = model(**batch, **(count if facts.takes_count else {}))
    return (facts.compute_loss(outputs, labels, **count) if facts.compute_loss else outputs.loss).item()


def _train(model, facts, trial, autocast):
    import torch
    import transformers

    args, weights = facts.args, {name: p for name, p in model.named_parameters() if p.requires_grad}
    if args.activation_checkpointing:
        model.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
    kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer = kind(weights.values(), weight_decay=args.weight_decay, **options)
    for step in range(TRIAL_STEPS):
        for group in optimizer.param_groups:  # a short warm-up, as most runs have
            group["lr"] = args.learning_rate * min(1, (step + 1) / 3)
        with autocast:
            loss = model(**facts.batches[step % len(facts.batches)]).loss
        trial.during.append(loss.item())
        if not loss.requires_grad:
            break
        loss.backward()
        trial.reached |= {name for name, p in weights.items() if p.grad is not None and p.grad.any()}
        torch.nn.utils.clip_grad_norm_(weights.values(), args.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()


def _losses_added(facts):
    """The losses of how many batches the Trainer adds: it trusts each to be divided by the items in all of them."""
    args = facts.args
    several_labels = facts.config.problem_type == "multi_label_classification"
    smoothed = args.label_smoothing_factor and not several_labels  # by the Trainer, which divides as it should
    if not facts.compute_loss and (smoothed or not facts.takes_count):
        return 1  # it averages them
    processes = max(args.world_size, args.n_gpu) if args.average_tokens_across_devices else 1
    return processes * (1 if facts.loss_is_scaled is False else args.gradient_accumulation_steps)


def _after_trial(facts, trial):
    rate, before, during, after = facts.args.learning_rate, trial.before, trial.during, trial.after
    if before is None:
        yield "error, labels: the model returns no loss. Give the rows a column labels."
        return
    n, model = _losses_added(facts), "model" if facts.base is facts.model else "model.get_base_model()"
    if trial.ignores_count:
        whose, cure = "the model's loss", f"Set {model}.accepts_loss_kwargs = False before the Trainer is made."
        if facts.compute_loss:
            whose, cure = "compute_loss_func", "Let it return the sum of the losses, divided by num_items_in_batch."
        yield (
            f"warning, accumulation: {whose} is a mean that ignores num_items_in_batch, so the Trainer adds those of "
            f"{n} small batches instead of averaging them: loss and gradients are {n} times too large. {cure}"
        )
    sizes = {name: p.numel() for name, p in facts.model.named_parameters() if p.requires_grad}
    left = [name for name in sizes if name not in trial.reached]
    later = float(np.mean(during[1:] or [before]))
    steps = f"{TRIAL_STEPS} trial steps at the rate {rate:g}"
    moved = max((abs(a - b) for a, b in zip(during[2:], during, strict=False)), default=0)  # the same batch again
    if during and sum(sizes[name] for name in left) > sum(sizes.values()) / 2:
        yield (
            f"error, no gradient: no gradient arrives at {left[0]} and {len(left) - 1} others. Look for a layer "
            "between it and the loss that is unused, or cut off by detach or no_grad."
        )
    elif not 1e-6 < before < math.inf:
        yield (
            f"error, loss: the loss is {before:g} before any training. Look at the labels of a batch, and at the "
            "dtype: fp16 overflows where bf16 and fp32 do not."
        )
    elif not later < 2 * before + 1:
        yield (
            f"error, learning rate: in {steps} the loss rose from {before:.2f} to {later:.2f}. Try a tenth of the rate."
        )
    elif facts.steps > 20 and moved < 0.2 * before and (1 - after / before) * facts.steps / TRIAL_STEPS < 0.2:
        yield (
            f"error, learning rate: {steps} took the loss of their own rows from {before:.3f} to {after:.3f}: in "
            f"{facts.steps} steps hardly anything will be learned. Try ten times the rate."
        )


CHECKS = (
    _settings, _resume, _memory, _vocabulary, _labels, _leak, _metric, _padding, _answers, _head, _adapters, _frozen,
)  # fmt: skip
NO_TRIAL = {"vocabulary", "labels", "nothing counts", "memory"}  # with these the trial would fail, or show nothing
NO_TRIAL |= {"quantised head", "merged in four bits", "no gradient"}
