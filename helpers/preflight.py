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
import multiprocessing
import pickle
import random
import re
import sys
import warnings
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
    model, tokenizer, dataset, args, *, eval_dataset=None, data_collator=None, compute_metrics=None,
    preprocess_logits_for_metrics=None, callbacks=(), compute_loss_func=None, loss_is_scaled_for_ga=None,
    resume_from_checkpoint=None, device=None,
):  # fmt: skip
    """What is wrong with a training before it runs: a list of problems, empty for a run that looks healthy.

    The arguments are those of the `Trainer` and of its `train`, and its attribute `loss_is_scaled_for_ga`; `dataset` is
    the training set. `device` says where the training has to fit ("cuda", or a number of GiB); without it memory is
    predicted only for a model that is on a GPU. It looks at settings, rows (the first 20,000), adapters, and two
    batches as the collator makes them. Then it trains a copy of the model on these for six steps, with the model's own
    loss even where there is a `compute_loss_func`; the copy needs memory for the weights that are trained. Of a run
    that evaluates, `compute_metrics` is called on a few rows. What your functions or the libraries raise is a problem
    of the report. A run in which nothing is found may still be wrong.

    >>> import transformers
    >>> small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    >>> model = transformers.BertForSequenceClassification(transformers.BertConfig(**small))
    >>> rows = [{"input_ids": [2, 7, 9], "attention_mask": [1, 1, 1], "labels": label} for label in (0, 1, 2)]
    >>> check(model, None, rows, transformers.TrainingArguments("runs/none", report_to="none"))
    error, labels: row 3 has the label 2, the model has 2 (0 to 1). Correct it, or load the model with num_labels=3.

    Taught in notebooks/08_break_it.ipynb, "What one call would have said".
    """
    given = locals()
    with _same_random_numbers():
        facts = Facts(**given)
        report = Report(Problem.read(line) for look in CHECKS for line in look(facts))
        if NO_TRIAL.isdisjoint(report.names):
            report += map(Problem.read, _tried(facts))
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
    ['model', 'tokenizer', 'dataset', 'args']
    """

    model: object
    tokenizer: object
    dataset: object
    args: object
    eval_dataset: object
    data_collator: object
    compute_metrics: object
    preprocess_logits_for_metrics: object
    callbacks: object
    compute_loss_func: object
    loss_is_scaled_for_ga: object
    resume_from_checkpoint: object
    device: object  # where it has to fit; None: memory is not looked at

    def __post_init__(self):
        from peft.tuners.tuners_utils import BaseTunerLayer
        from transformers.utils import find_labels

        args, model = self.args, self.model
        self.on_gpu = model.device.type == "cuda"
        self.device = self.device or ("cuda" if self.on_gpu else None)
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config, self.kind = self.base.config, type(self.base).__name__
        self.adapter_layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.writes = self.kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        self.n_words = self.base.get_input_embeddings().weight.shape[0]
        self.tokens = _column(self.dataset, "input_ids")
        labels = _column(self.dataset, "labels") or _column(self.dataset, "label")
        self.labels = [label if isinstance(label, list) else [label] for label in labels]
        rows_per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.steps_per_epoch = max(1, math.ceil(len(self.dataset) / rows_per_step))
        self.steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.steps_per_epoch)
        parameters = inspect.signature(self.base.forward).parameters
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        self.takes_count = getattr(self.base, "accepts_loss_kwargs", takes_any)  # as the Trainer finds out
        self.label_names = find_labels(type(self.base)) if args.label_names is None else args.label_names
        self.columns = {*parameters, "label", "label_ids", *self.label_names}
        rows = self.eval_dataset
        self.eval_sets = rows if isinstance(rows, dict) else {} if rows is None else {"": rows}
        size = min(args.train_batch_size, 8, len(self.dataset))
        order = random.Random(0).sample(range(len(self.dataset)), min(2 * size, len(self.dataset)))
        chosen = [order[start : start + size] for start in range(0, len(order), size)]
        self.batches, self.eval_batch, self.sample = [], None, []  # two, of a few rows from all over the data
        self.evaluates = bool(self.eval_sets) and args.eval_strategy != "no"
        with _kept() as self.not_collated:
            self.batches = [self.batch(indices) for indices in chosen]
            for rows in list(self.eval_sets.values())[:1]:
                held_out = _column(rows, "input_ids") or [()] * len(rows)
                some = random.Random(0).sample(range(len(rows)), min(args.eval_batch_size, 8, len(rows)))
                some[0] = max(range(len(held_out)), key=lambda i: len(held_out[i]))  # to its length all are padded
                self.eval_batch = self.batch(some, rows)
        has_labels = self.eval_batch and all(name in self.eval_batch for name in self.label_names)
        self.judged = has_labels and self.compute_metrics and not args.prediction_loss_only
        for indices, batch in zip(chosen, self.batches, strict=False):
            self.sample += _split(indices, batch)
        tokens = {token for row in self.sample for token in itertools.compress(row.tokens, row.real)}
        labels = {label for row in self.sample for label in row.labels} if self.writes else set()
        self.used = {"input": tokens, "output": labels - {IGNORED}}

    def batch(self, indices, dataset=None):
        """These rows as the Trainer gives them to the model."""
        import transformers

        padding = transformers.DataCollatorWithPadding(self.tokenizer) if self.tokenizer else None
        collate = self.data_collator or padding or transformers.default_data_collator
        rows = [(dataset or self.dataset)[i] for i in indices]
        if self.args.remove_unused_columns:
            rows = [{name: value for name, value in row.items() if name in self.columns} for row in rows]
        return {name: tensor.to(self.model.device) for name, tensor in collate(rows).items()}

    def answers(self):
        """(row, its tokens, its labels that count) of the sampled rows that teach a writer to answer."""
        for row in self.sample if self.writes else ():
            tokens = list(itertools.compress(row.tokens, row.real))
            labels = row.labels if self.config.is_encoder_decoder else itertools.compress(row.labels, row.real)
            counted = [label for label in labels if label != IGNORED]
            if counted and (self.config.is_encoder_decoder or len(counted) < len(tokens)):
                yield row.number, tokens, counted


@contextlib.contextmanager
def _kept():
    """A list that takes what is raised: the code of the reader and of the libraries may raise anything."""
    errors = []
    try:
        yield errors
    except Exception as error:
        errors.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


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
    if epochs > 5 and not facts.evaluates:
        yield (
            f"warning, overfitting: {epochs:.0f} passes over {len(facts.dataset)} rows, and you would not see it learn "
            'them by heart. Pass eval_dataset=, eval_strategy="epoch" and load_best_model_at_end=True.'
        )
    if args.label_smoothing_factor and not facts.writes and facts.config.num_labels == 1:
        yield "error, smoothing: label_smoothing_factor is for classes; with one output the loss is always 0. Unset it."
    half = [(name, str(p.dtype).removeprefix("torch.")) for name, p in facts.trained.items() if p.dtype.itemsize < 4]
    cure = "Load the model with dtype=torch.float32."
    if facts.base is not facts.model:
        cure = "Cast what is trained: peft.cast_mixed_precision_params(model, torch.float16)."
    for name, dtype in half[:1]:
        if args.fp16:
            yield (
                f"error, half precision: {name} is trained in {dtype}, and fp16=True wants fp32 for what is trained: "
                f'its gradient scaler stops at step 1 ("Attempting to unscale FP16 gradients"). {cure}'
            )
        elif dtype == "float16":
            yield (
                f"warning, half precision: {name} is trained in float16 alone: an update below a 2,000th of a weight "
                f"is lost, and AdamW's eps is 0 in it. {cure} Then fp16=True, or bf16=True, makes it fast."
            )
    start = args.dataloader_multiprocessing_context or multiprocessing.get_start_method(allow_none=True)
    if args.dataloader_num_workers and (start or multiprocessing.get_all_start_methods()[0]) != "fork":
        with _kept() as errors:
            pickle.dumps(facts.data_collator)
        own = {"__main__"} & {getattr(one, "__module__", None) for one in (facts.data_collator, facts.dataset)}
        if own and not hasattr(sys.modules["__main__"], "__file__"):
            errors.append("a worker has nothing that a notebook defines")
        for error in errors[:1]:
            yield (
                f"error, workers: the collator or data set cannot be sent to a worker ({error}). Define it in a file "
                "that you import, or set dataloader_num_workers=0."
            )


def _best(facts):
    """Whether there are evaluations for what depends on them: the best checkpoint, early stopping."""
    args, steps = facts.args, facts.steps
    every = args.eval_steps or args.logging_steps
    every = facts.steps_per_epoch if args.eval_strategy == "epoch" else every if every >= 1 else steps * every
    evaluations = math.ceil(steps / max(1, every)) if args.eval_strategy == "steps" else int(steps / max(1, every))
    evaluations *= args.eval_strategy != "no"  # by steps there is one more at the end
    if args.eval_strategy != "no" and not facts.eval_sets:
        yield (
            f'error, evaluation: eval_strategy="{args.eval_strategy}", and the Trainer has no rows. Pass eval_dataset=.'
        )
    elif args.load_best_model_at_end and evaluations < 2:
        yield (
            f"error, best lost: load_best_model_at_end=True and {evaluations} evaluations in {steps} steps, so there "
            "is no best one to choose. Evaluate and save more often: eval_strategy, eval_steps, save_steps."
        )
    elif args.eval_strategy == "steps" and every > steps:
        yield (
            f"warning, evaluation: eval_steps={every:g} and the run has {steps}: it is evaluated once, at the end. "
            'Set eval_strategy="epoch", or a share: eval_steps=0.1.'
        )
    patience = [c.early_stopping_patience for c in facts.callbacks if hasattr(c, "early_stopping_patience")]
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

    folder, resume_from = Path(facts.args.output_dir), facts.resume_from_checkpoint
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
    saved = json.loads(state.read_text()) if state.exists() else {}
    done, epoch = saved.get("global_step"), saved.get("epoch")
    if done is None:
        yield f"error, resume: {start.name} has no trainer_state.json: it would start over. Pass a folder checkpoint-N."
    elif done >= facts.steps:
        yield (
            f"error, resume: {start.name} is at step {done} and the run ends at step {facts.steps}: nothing is left to "
            "train, but Trainer would make one step more. Raise num_train_epochs, or start anew in another output_dir."
        )
    elif epoch and abs(epoch - done / facts.steps_per_epoch) > 1 / facts.steps_per_epoch + 0.02 * epoch:
        yield (
            f"error, resume: step {done} of {start.name} was in epoch {epoch:.2f}, with these rows and this batch size "
            f"it is in epoch {done / facts.steps_per_epoch:.2f}: rows would be left out or come twice. Resume with "
            "the rows, batch size and accumulation of before, or start anew from its weights."
        )
    elif not (start / "optimizer.pt").exists():
        yield (
            f"warning, resume: {start.name} has no optimizer.pt (save_only_model=True?): AdamW and the rate begin anew."
        )


def _memory(facts):
    if facts.device is None or facts.not_collated:
        return
    from . import memory

    args, config = facts.args, copy.copy(facts.config)
    config.architectures = [facts.kind]  # from it memory knows what the model does
    longest = sorted(range(len(facts.tokens)), key=lambda i: len(facts.tokens[i]))[-2:]
    size, length = args.train_batch_size, facts.batch(longest)["input_ids"].shape[1]
    rows = args.eval_batch_size if facts.evaluates else None
    predicted = memory.predict(
        config, batch=size, length=length, dtype=facts.model.dtype, device="cuda" if facts.on_gpu else "cpu",
        peft=next(iter(getattr(facts.model, "peft_config", {}).values()), None),
        quantization_config=getattr(config, "quantization_config", None),
        optim=args.optim if args.optim in memory.OPTIMIZERS else "adamw_torch",
        activation_checkpointing=bool(args.activation_checkpointing),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        autocast="bfloat16" if args.bf16 else "float16" if args.fp16 else None, eval_batch=rows,
    )  # fmt: skip
    if args.optim not in memory.OPTIMIZERS:
        yield f"warning, optimizer: the memory of {args.optim.value} is not known, and taken for adamw_torch's."
    evaluation = predicted.phase == "evaluation"
    fit = memory.fits(predicted, facts.device, suggest=not evaluation)
    if fit.answer != "yes":
        level = "error" if fit.answer == "no" else "warning"
        if evaluation:
            yield (
                f"{level}, evaluation memory: {rows} x {length} tokens are evaluated at once, does it fit? {fit!r} Set "
                f"per_device_eval_batch_size={size} or less."
            )
        else:
            yield f"{level}, memory: batches of {size} x {length} tokens, does it fit? {fit!r}"


def _rows(facts):
    """What the Trainer, the collator or the model could not use."""
    names = facts.dataset.column_names if hasattr(facts.dataset, "column_names") else list(facts.dataset[0])
    if facts.args.remove_unused_columns and facts.columns.isdisjoint(names):
        yield (
            f"error, columns: the model takes none of the columns {', '.join(names)}, so the Trainer drops all. "
            "Tokenise the rows; for a collator that does it itself set remove_unused_columns=False."
        )
    elif facts.not_collated:
        yield (
            f"error, collator: no batch can be made of rows with {', '.join(names)}: {facts.not_collated[0]} Pass "
            "data_collator=: DataCollatorWithPadding, DataCollatorForTokenClassification or DataCollatorForSeq2Seq."
        )
    missing = [name for name in facts.label_names if name not in (facts.eval_batch or facts.label_names)]
    wanted = facts.compute_metrics or facts.args.load_best_model_at_end
    if facts.evaluates and wanted and missing and "labels" in facts.batches[0]:
        yield (
            f"error, evaluation: the evaluation rows have no {', '.join(missing)}, so the Trainer computes neither "
            "their loss nor compute_metrics. Add the column, or set label_names to those that they have."
        )


def _begin(facts):
    tokenizer = facts.tokenizer
    begins = (getattr(tokenizer, name, None) for name in ("bos_token_id", "cls_token_id"))
    begin = next((token for token in begins if token is not None), None)
    masks = _column(facts.dataset, "attention_mask") or [[1] * len(tokens) for tokens in facts.tokens]
    starts = [list(itertools.compress(*row))[:2] for row in zip(facts.tokens, masks, strict=False)]
    twice = [number for number, start in enumerate(starts, 1) if begin is not None and start == [begin, begin]]
    if len(twice) > len(starts) / 10:
        yield (
            f"error, begins twice: {len(twice)} of {len(starts)} rows begin with two "
            f"{tokenizer.convert_ids_to_tokens(begin)} (the first is row {twice[0]}): the text has one already. "
            "Tokenise it with add_special_tokens=False, here and for prompts; text.tokenize_chat does."
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
    if facts.batches and not any(name in facts.batches[0] for name in ("labels", *facts.label_names)):
        yield "error, labels: the rows have no column labels, so there is no loss. Add it: text.tokenize does."
    empty = [number for number, labels in enumerate(rows, 1) if all(label == IGNORED for label in labels)]
    if len(empty) > len(rows) / 10:
        yield (
            f"error, nothing counts: in {len(empty)} of {len(rows)} rows (the first is row {empty[0]}) every label is "
            "-100, so nothing is learned. Look at one with text.preview: the mask does not find the answer in the text."
        )
    shares = any(isinstance(label, float) for labels in rows[:1] for label in labels)  # or several classes in a row
    if config.problem_type in ("regression", "multi_label_classification") or n == 1 or shares:
        return
    flat = ((number, label) for number, labels in enumerate(rows, 1) for label in labels)
    wrong = [pair for pair in flat if isinstance(pair[1], str) or not (0 <= pair[1] < n or pair[1] == IGNORED)]
    if wrong:
        (number, label), *_ = wrong
        can_grow = not facts.writes and not isinstance(label, str) and label >= n
        cure = f", or load the model with num_labels={label + 1}" if can_grow else ""
        yield f"error, labels: row {number} has the label {label}, the model has {n} (0 to {n - 1}). Correct it{cure}."
    missing = [] if facts.writes or len(facts.dataset) > ROWS_READ else sorted(set(range(n)).difference(*rows))
    if rows and missing and not wrong:
        names = ", ".join(str(config.id2label.get(label, label)) for label in missing)
        yield f"warning, class missing: no row has {names}, so it is not learned. Shuffle before you cut: data.split."


def _leak(facts):
    training = {tuple(tokens): number for number, tokens in reversed([*enumerate(facts.tokens, 1)])}
    for name, rows in facts.eval_sets.items():
        held_out = [tuple(tokens) for tokens in _column(rows, "input_ids")]
        leaks = [(number, training[tokens]) for number, tokens in enumerate(held_out, 1) if tokens in training]
        if leaks:
            (row, training_row), level = leaks[0], "error" if len(leaks) > len(held_out) / 100 else "warning"
            yield (
                f"{level}, leak: {len(leaks)} of {len(held_out)} evaluation rows{' of ' * bool(name)}{name} are "
                f"trained on too (row {row} is training row {training_row}). Take them out: data.without_overlaps."
            )


def _score(facts, logits, labels):
    """What compute_metrics says of these logits, as the Trainer asks it."""
    import transformers
    from transformers.trainer_pt_utils import nested_numpify

    if facts.preprocess_logits_for_metrics:
        logits = facts.preprocess_logits_for_metrics(logits, labels)
    evaluation = transformers.EvalPrediction(nested_numpify(logits), nested_numpify(labels))
    return facts.compute_metrics(evaluation, **({"compute_result": True} if facts.args.batch_eval_metrics else {}))


def _metric(facts):
    """What the metrics say of a model that answers every row with the most frequent class."""
    judged = facts.eval_sets and facts.compute_metrics and not facts.writes
    labels = _column(next(iter(facts.eval_sets.values())), "labels") if judged else []
    if not labels or not isinstance(labels[0], int):
        return
    import torch

    (frequent, count), least = Counter(labels).most_common(1)[0], 0
    with _kept():  # what it raises is said after the trial
        scores = _score(facts, torch.eye(facts.config.num_labels)[[frequent] * len(labels)], torch.tensor(labels))
        least = min(scores.values(), default=0)
    if count > 0.6 * len(labels) and least > 0.6:
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
            pad = facts.config.pad_token_id
            padded = [label for label in row.labels[-1:] if label == pad != facts.config.eos_token_id]
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
    endless = [answer for answer in answers if answer[2][-1] not in ends]
    if len(endless) > len(answers) / 10:
        number, tokens, counted = endless[0]
        why = "the end is not there. Add tokenizer.eos_token, and look for rows that were cut."
        only_ends = ends.issuperset(Counter(tokens) - Counter(counted))  # are masked: it is a text, not an answer
        if not facts.config.is_encoder_decoder and (tokens[-1] in ends or only_ends):
            why = "the end is there, but has the label -100. If padding and the end are one token, give padding its "
            why += "own, or take DataCollatorForSeq2Seq, which masks what it has padded."
        yield f"error, never stops: {len(endless)} of {len(answers)} answers do not learn to end (row {number}): {why}"
    if not facts.writes or not getattr(tokenizer, "chat_template", None):
        return
    chat, opening = [{"role": "user", "content": "a"}], ""
    with _kept():  # a template may refuse that
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


def _bits(layer):
    """ "4", "8", or nothing for a layer that is not quantised."""
    return "".join(re.findall(r"([48])bit", type(layer).__name__))


def _own(facts):
    """The ids of the weights that an adapter brings along, those of layers that it trains whole among them."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    parts = [*facts.adapter_layers, *(m for m in facts.model.modules() if isinstance(m, AuxiliaryTrainingWrapper))]
    named = itertools.chain.from_iterable(part.named_parameters() for part in parts)
    return {id(p) for name, p in named if not re.search(r"base_layer|original_module", name)}


def _head(facts):
    """A new head has a bias of zeros, or none; one that was trained before may well be frozen."""
    body, own = getattr(facts.base, facts.base.base_model_prefix, None), _own(facts)
    for name, top in facts.base.named_children() if not facts.writes else ():
        heads = [layer for layer in top.modules() if getattr(layer, "out_features", None) == facts.config.num_labels]
        trained = {name: p for name, p in top.named_parameters() if p.requires_grad}
        if top is body or not heads or any("modules_to_save" in n or id(p) not in own for n, p in trained.items()):
            continue
        new = heads[0].bias is None or not heads[0].bias.any()
        if _bits(heads[0]):
            yield (
                f"error, quantised head: {name} is new, in {_bits(heads[0])} bits and not trained: it stays as random "
                f'as it was made. Load the base with llm_int8_skip_modules=["{name}"] and give the adapter '
                'task_type="SEQ_CLS".'
            )
        elif new and trained:
            yield (
                f"error, frozen head: {name} is new and a target of the adapter: its own weights stay as random as "
                "they were made, and are not saved, so a base that is loaded anew has others. Take it out of "
                f'target_modules and set modules_to_save=["{name}"].'
            )
        elif new:
            adapted = f'modules_to_save=["{name}"] in the configuration of the adapter'
            yield (
                f"error, frozen head: {name} is new (its bias is all zeros) and not trained: it stays as random as it "
                f"was made. Set {adapted if facts.adapter_layers else 'its requires_grad'}."
            )


def _saved(facts):
    """Weights of the base that are trained, and that the folder of the adapter would not have."""
    import peft

    own = _own(facts)
    trained = {name: p for name, p in facts.base.named_parameters() if p.requires_grad and id(p) not in own}
    if not trained or not isinstance(facts.model, peft.PeftModel):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on embeddings that it adds to what is saved
        states = [peft.get_peft_model_state_dict(facts.model, adapter_name=name) for name in facts.model.peft_config]
    saved = {tensor.data_ptr() for state in states for tensor in state.values()}
    lost = [name.split(".") for name, p in trained.items() if p.data_ptr() not in saved]
    names = sorted({parts[-2] if parts[0] == facts.base.base_model_prefix else parts[0] for parts in lost})
    if lost:
        yield (
            f"error, not saved: {', '.join(names)} is trained and not in modules_to_save: the folder of the adapter "
            f"lacks {'.'.join(lost[0])}, so a base that is loaded anew has another. Set modules_to_save="
            f"{json.dumps(names)} in its configuration instead of requires_grad."
        )


def _adapters(facts):
    layers, model = facts.adapter_layers, facts.model
    merged = [layer for layer in layers if layer.merged]
    own = [p for layer in layers for name, p in layer.named_parameters() if "base_layer" not in name]
    newest = next(reversed(getattr(model, "peft_config", {})), None)  # none when the layers were put in by hand
    idle = [layer for layer in layers if newest in getattr(layer, "lora_B", ()) and newest not in layer.active_adapters]
    bits = next(filter(None, (_bits(layer.get_base_layer()) for layer in merged)), None)
    if bits:
        yield (
            f"error, merged in four bits: in {len(merged)} layers the adapter is merged into {bits}-bit weights, "
            "which were rounded again: the answers are not those that you trained. Load the base anew; when training "
            "is done, merge into base.dequantize()."
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
    if not layers or not hasattr(model, "get_base_model"):
        return
    # peft keeps the list of adapters in the PeftModel that was first on a base; a second one has none of its own, and
    # leaves in the first one's layers another adapter that is active, or ranks that are not those of its list
    second, config = "peft_config" not in vars(model.base_model), model.peft_config.get(newest)
    ranks = {layer.r[newest] for layer in layers if newest in getattr(layer, "lora_B", ())}
    other = config.peft_type == "LORA" and not config.rank_pattern and ranks - {config.r}
    if second or other or any(set(layer.active_adapters) != set(model.active_adapters) for layer in layers):
        whose = "this one is written into the same layers" if second else "now another is written over it"
        yield (
            f"error, adapter overwritten: the base carried the adapter of another PeftModel already, and {whose}. "
            "Keep one PeftModel, on a base that was loaded anew, and add to it: model.load_adapter(folder, name)."
        )


def _frozen(facts):
    bits = next(filter(None, map(_bits, facts.model.modules())), None)
    if bits and not hasattr(facts.model, "peft_config"):
        yield (
            f"error, merged in four bits: {bits}-bit weights without an adapter cannot be trained. If one was merged "
            "into them, they were rounded again: load the base anew, and add an adapter with get_peft_model."
        )
    elif not facts.trained:
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
    stuck: dict = field(default_factory=dict)  # new tokens, to the tables in which they stay as they are
    kept: dict = field(default_factory=dict)  # the outputs that an evaluation keeps, with the bytes of each row
    n_kept: float = 0  # the bytes of a row that are left after preprocess_logits_for_metrics
    scores: object = None  # what compute_metrics says of a batch
    errors: list = field(default_factory=list)  # what the evaluation raised


def _trial(facts):
    """Train a copy of the model for a few steps on the two batches; weights that are frozen are shared, not copied."""
    import torch

    frozen = {id(p): p for p in facts.model.parameters() if not p.requires_grad}
    model, trial = copy.deepcopy(facts.model, frozen), Trial()
    model.config.use_cache = facts.args.use_cache  # as the Trainer does
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
        if facts.evaluates and facts.judged:
            with autocast, torch.no_grad(), _kept() as trial.errors:
                _evaluate(model.eval(), facts, trial)
        new = _new_tokens(facts)
        tables = _tables(model, new)
        _train(model.train(), facts, trial, autocast)
        trial.after = mean_loss()
        for (name, before), (_, after) in zip(tables, _tables(model, new), strict=True):
            still = (before == after).reshape(len(new), -1).all(dim=1).tolist()
            trial.stuck[name] = [token for token in itertools.compress(new, still) if token in facts.used[name]]
    return trial


def _new_tokens(facts):
    """Tokens of the sampled rows that pre-training did not know: beyond the model that was saved, or its tokenizer."""
    import transformers

    n_known = facts.n_words
    with _kept():  # a model that was never saved, or is not on this machine
        saved = transformers.AutoConfig.from_pretrained(facts.base.name_or_path, local_files_only=True)
        n_known = saved.get_text_config().vocab_size
    now = getattr(facts.tokenizer, "added_tokens_decoder", {})
    before = map(int, getattr(facts.tokenizer, "init_kwargs", {}).get("added_tokens_decoder", now))
    # one that was made special only, such as a new pad token, has been in the vocabulary before
    n_known = min([n_known, *(token for token in now.keys() - set(before) if token >= facts.tokenizer.vocab_size)])
    return sorted(token for token in set.union(*facts.used.values()) if token >= n_known)


def _tables(model, tokens):
    """The input and the output table of these tokens, as [name, a row or number for each], adapters included."""
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not tokens:
        return []
    with torch.no_grad():
        ids = torch.tensor(tokens, device=model.device)
        rows = base.eval().get_input_embeddings()(ids)
        head = base.get_output_embeddings()
        probe = torch.linspace(-1, 1, base.config.hidden_size, device=rows.device, dtype=rows.dtype)
        return [("input", rows.clone())] + ([("output", head(probe[None])[0, ids].clone())] if head else [])


def _evaluate(model, facts, trial):
    """What the Trainer keeps of each row of an evaluation, and what the metrics say of a batch of them."""
    batch, generates = facts.eval_batch, getattr(facts.args, "predict_with_generate", False)
    ignored = ["loss", *getattr(facts.config, "keys_to_ignore_at_inference", ["past_key_values"])]
    outputs = {} if generates else model(**batch)
    kept = {name: value for name, value in outputs.items() if name not in ignored}
    labels = [batch[name] for name in facts.label_names]
    labels = labels[0] if len(labels) == 1 else tuple(labels)
    logits = labels.clamp(min=0) if generates else next(iter(kept.values())) if len(kept) == 1 else tuple(kept.values())
    n_rows = len(next(iter(batch.values())))
    trial.kept = {name: _bytes(value) / n_rows for name, value in kept.items()}
    left = facts.preprocess_logits_for_metrics(logits, labels) if facts.preprocess_logits_for_metrics else logits
    trial.n_kept = _bytes(left) / n_rows
    trial.scores = dict(_score(facts, logits, labels))


def _bytes(tensors):
    nested = isinstance(tensors, (tuple, list))
    return sum(map(_bytes, tensors)) if nested else tensors.numel() * tensors.element_size()


def _loss_of_share(facts, model, n_items):
    """What the Trainer takes for the share of the first batch in the loss of so many items."""
    import torch

    batch, count = dict(facts.batches[0]), {"num_items_in_batch": torch.tensor(n_items, device=model.device)}
    labels = batch.pop("labels") if facts.compute_loss_func else None
    outputs = model(**batch, **(count if facts.takes_count else {}))
    return (facts.compute_loss_func(outputs, labels, **count) if facts.compute_loss_func else outputs.loss).item()


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
    if not facts.compute_loss_func and (smoothed or not facts.takes_count):
        return 1  # it averages them
    processes = max(args.world_size, args.n_gpu) if args.average_tokens_across_devices else 1
    return processes * (1 if facts.loss_is_scaled_for_ga is False else args.gradient_accumulation_steps)


def _tried(facts):
    with _kept() as errors:
        trial = _trial(facts)
    for error in errors:
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in facts.batches[0].items())
        yield f"error, does not run: a training step on {sizes} stops with {error} Mend it first: the run would too."
        return
    for look in (_after_trial, _stuck, _after_evaluation, _chosen_by):
        yield from look(facts, trial)


def _after_trial(facts, trial):
    rate, before, during, after = facts.args.learning_rate, trial.before, trial.during, trial.after
    if before is None:
        yield "error, labels: the model returns no loss. Give the rows a column labels."
        return
    n, model = _losses_added(facts), "model" if facts.base is facts.model else "model.get_base_model()"
    if trial.ignores_count:
        whose, cure = "the model's loss", f"Set {model}.accepts_loss_kwargs = False before the Trainer is made."
        if facts.compute_loss_func:
            whose, cure = "compute_loss_func", "Let it return the sum of the losses, divided by num_items_in_batch."
        yield (
            f"warning, accumulation: {whose} is a mean that ignores num_items_in_batch, so the Trainer adds those of "
            f"{n} small batches instead of averaging them: loss and gradients are {n} times too large. {cure}"
        )
    sizes = {name: p.numel() for name, p in facts.trained.items()}
    left = [name for name in sizes if name not in trial.reached]
    later = float(np.mean(during[1:] or [before]))
    steps = f"{TRIAL_STEPS} trial steps at the rate {rate:g}"
    moved = max((abs(a - b) for a, b in zip(during[2:], during, strict=False)), default=0)  # the same batch again
    if during and sum(sizes[name] for name in left) > sum(sizes.values()) / 2:
        cure = "Look for a layer between it and the loss that is unused, or cut off by detach or no_grad."
        if facts.args.activation_checkpointing:
            cure = 'With gradient checkpointing: activation_checkpointing_kwargs={"use_reentrant": False}.'
        yield f"error, no gradient: no gradient arrives at {left[0]} and {len(left) - 1} others. {cure}"
    elif not 1e-6 < before < math.inf:
        broken = next((name for name, p in facts.model.named_parameters() if not p.isfinite().all()), None)
        cure = "Look at the labels of a batch, and at the dtype: fp16 overflows where bf16 and fp32 do not."
        if broken:
            cure = f"The weights {broken} hold NaN or infinity: load them anew."
        yield f"error, loss: the loss is {before:g} before any training. {cure}"
    elif not (later < 2 * before + 1 and after < 1.5 * before + 0.5):
        yield f"error, learning rate: {steps} took the loss from {before:.2f} to {max(later, after):.2f}. Try a tenth."
    elif facts.steps > 20 and moved < 0.2 * before and (1 - after / before) * facts.steps / TRIAL_STEPS < 0.2:
        yield (
            f"error, learning rate: {steps} took the loss of their own rows from {before:.3f} to {after:.3f}: in "
            f"{facts.steps} steps hardly anything will be learned. Try ten times the rate."
        )


def _stuck(facts, trial):
    stuck = sorted({token for tokens in trial.stuck.values() for token in tokens})
    if stuck:
        names = facts.tokenizer.convert_ids_to_tokens(stuck[:5]) if facts.tokenizer else map(str, stuck[:5])
        tables = " and ".join(name for name, tokens in trial.stuck.items() if tokens)
        yield (
            f"error, new tokens: {', '.join(names)} are new, and their rows of the {tables} embeddings are frozen: "
            f"they stay as random as they were made. Give the adapter trainable_token_indices={stuck[:5]}, or "
            "modules_to_save with both embeddings."
        )


def _after_evaluation(facts, trial):
    """What the Trainer would keep of an evaluation."""
    from . import memory

    for error in trial.errors:
        yield (
            f"warning, evaluation: compute_metrics, or what leads to it, stops on a few rows with {error} If it does "
            "not need all of them, mend it now: it would stop the run after its first evaluation."
        )
    logits = sum(size for name, size in trial.kept.items() if "logits" in name)
    rows, more = max(map(len, facts.eval_sets.values()), default=0), trial.n_kept > 2 * logits > 0
    total = memory.Prediction(int(trial.n_kept * rows), {}, "evaluation", device="cpu")
    large = facts.device and memory.fits(total, facts.device).answer != "yes"
    if more or large:
        heading = "error, evaluation memory: " if large else "warning, evaluation outputs: "
        switches = [
            f"model.config.output_{name}=False" for name in ("hidden_states", "attentions") if name in trial.kept
        ]
        cure = " or ".join([*switches, "preprocess_logits_for_metrics=metrics.keep_argmax"])
        yield heading + (
            f"an evaluation keeps {', '.join(trial.kept)} of each row, {trial.n_kept / 1024:.3g} KiB, of {rows} rows "
            f"{total.peak_gib:.2g} GiB. Keep less: {cure}."
        )


def _chosen_by(facts, trial):
    """The metric that shall choose the best checkpoint: there has to be one, and its better side has to be known."""
    wanted, greater = facts.args.metric_for_best_model, bool(facts.args.greater_is_better)
    if not wanted or not facts.evaluates or (trial.scores is None and facts.compute_metrics):
        return
    names = {"loss", "runtime", "samples_per_second", "steps_per_second", *(trial.scores or ())}
    prefixes = [f"eval_{part}_" if part else "eval_" for part in facts.eval_sets]
    known = {name if name.startswith(prefix) else prefix + name: name for prefix in prefixes for name in names}
    full = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
    sign = _direction(facts, known[full]) if full in known else 0
    if full not in known:
        useful = ", ".join(sorted(name for name in known if not re.search("runtime|per_second", name)))
        yield (
            f'error, best metric: metric_for_best_model="{wanted}", and the evaluation gives {useful}. It would stop '
            "with a KeyError after the first one. Take one of these, or let compute_metrics give it."
        )
    elif sign and greater != (sign > 0):
        yield (
            f"error, best metric: of {wanted} {'more' if sign > 0 else 'less'} is better, and greater_is_better="
            f"{greater}: the worst checkpoint would be kept. Set greater_is_better={not greater}."
        )


def _direction(facts, name):
    """Above 0 where more of a metric is better, below 0 where less is: by right and wrong answers, or by its name."""
    import torch

    labels, n = facts.eval_batch.get("labels"), facts.config.num_labels
    if facts.compute_metrics and labels is not None and not facts.writes and name != "loss":
        sides = labels[..., None].float(), -labels[..., None].float() - 100
        if not labels.is_floating_point() and n > 1:
            sides = [10 * torch.eye(n)[(labels.cpu().clamp(min=0) + turn) % n] for turn in (0, 1)]
        with _kept():
            right, wrong = (_score(facts, side, labels)[name] for side in sides)
            return float(right > wrong) - float(right < wrong)
    return bool(MORE.search(name.lower())) - bool(LESS.search(name.lower()))


MORE = re.compile(r"(^|_)(accuracy|acc|f\d*|precision|recall|auc|rouge\w*|bleu|chrf|em|exact|mcc)(_|\d|$)")
LESS = re.compile(r"(^|_)(loss|error|err|wer|cer|ter|mae|r?mse|perplexity|ppl|nll|brier|distance)(_|\d|$)")
CHECKS = (
    _settings, _best, _resume, _rows, _memory, _vocabulary, _begin, _labels, _leak, _metric, _padding, _answers, _head,
    _saved, _adapters, _frozen,
)  # fmt: skip
NO_TRIAL = {"vocabulary", "labels", "nothing counts", "memory"}  # with these the trial would fail, or show nothing
NO_TRIAL |= {"columns", "collator", "half precision"}
NO_TRIAL |= {"quantised head", "merged in four bits", "no gradient"}
