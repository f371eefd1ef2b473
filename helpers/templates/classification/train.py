"""Trains the model that config.yaml describes to give the texts in data/ their labels.

    python train.py              # or: accelerate launch train.py
    python train.py other.yaml   # another file of settings
    python train.py --find       # tries a few learning rates first, and writes the best into a copy of the settings

The sections of config.yaml decide the method: without `peft` and `quantization` the whole model is trained, with `peft`
an adapter, with both an adapter on a 4-bit model. A run that was interrupted goes on from its last whole checkpoint. A
finished run is not run again: it says so.
"""

import argparse
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import math
import os
import platform
import re
import sys
import tempfile
import time
import uuid
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import peft
import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    HfArgumentParser,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import report
import scoring
import verdict

HERE = Path(__file__).resolve().parent  # paths in config.yaml are relative to this folder
PARTS = ("train", "validation", "test")
COLUMNS = ("text", "label")  # of each row in data/
DATA = (*PARTS, "max_length", "stride", "labels", "multi_label", "class_weights")  # names in the section data
MODEL = ("pretrained_model_name_or_path", "revision", "dtype", "attn_implementation")  # names in the section model
IA3 = {  # for families that peft has no default for: layers whose output is scaled, and those whose input is
    "albert": (["key", "value"], ["ffn_output"]),
    "distilbert": (["k_lin", "v_lin"], ["lin2"]),
    "modernbert": (["Wqkv"], ["mlp.Wo"]),
}
RENAMED = {  # names of earlier versions, which the libraries refuse, ignore, or take with a warning; and short ones
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps (a number below 1 is a share)",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "use_mps_device": "use_cpu: false, as the device is found by itself",
    "fp16_backend": "fp16",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "gone: set another output_dir",
    "save_safetensors": "gone: it is always so",
    "tokenizer": "processing_class, which train.py passes",
    "as_target_tokenizer": "text_target, which train.py passes",
    "torch_dtype": "dtype",
    "load_in_4bit": "load_in_4bit in the section quantization",
    "load_in_8bit": "load_in_8bit in the section quantization",
    "peft_config": "peft",
    "quantization_config": "quantization",
    "training_args": "training",
    "generation_config": "generation",
}


# ---- Settings -----------------------------------------------------------------------------------------


class ConfigError(ValueError):
    """A setting that would be ignored or cannot be used; the message says what to write instead."""


class Loader(yaml.SafeLoader):
    """YAML that reads 2e-5 as a number, as Python does; without this it would be a text."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"])


def check_names(section, settings, known):
    """Raises for a name that is not known, with its current or nearest name: none is silently ignored."""
    if not isinstance(settings, dict):
        raise ConfigError(f"{section} is {settings!r}, and should be names with values.")
    for name in settings:
        if name == "trust_remote_code":
            raise ConfigError(
                f"{section}: trust_remote_code is refused, as it runs whatever code comes with a model: use a model "
                "that transformers has itself."
            )
        if name in RENAMED and (name not in known or section in ("training", "model")):
            raise ConfigError(f"{section}: {name} is now {RENAMED[name]}.")
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            nearest = f"; the nearest name is {near[0]}" if near else ""
            raise ConfigError(f"{section}: {name} is not known{nearest}.")


def read_config(path="config.yaml"):
    """The settings, by section; every name in them has been checked."""
    try:
        config = yaml.load((HERE / path).read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise ConfigError(f"which cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"which is no YAML: {' '.join(str(error).split())}.") from None
    known = {
        "model": MODEL,
        "data": DATA,
        "training": [field.name for field in dataclasses.fields(TrainingArguments)] + ["early_stopping_patience"],
        "peft": None,
        "quantization": list(inspect.signature(BitsAndBytesConfig).parameters),
    }
    check_names("sections", config, list(known))
    for section in ("peft", "quantization"):
        if section in config and config[section] is None:
            raise ConfigError(f"the section {section} is empty. Fill it in, or delete its line.")
    if "peft" in config:
        kinds = {kind.value: cls for kind, cls in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        kind = config["peft"].get("peft_type") if isinstance(config["peft"], dict) else None
        if kind not in kinds:
            raise ConfigError(f"peft: peft_type is {kind}, and should be one of {', '.join(sorted(kinds))}.")
        known["peft"] = [field.name for field in dataclasses.fields(kinds[kind])]
    for section in config:
        check_names(section, config[section], known[section])
    needed = [("model", MODEL[0]), ("training", "output_dir"), *(("data", name) for name in (*PARTS, "labels"))]
    for section, name in needed:
        if not config.get(section, {}).get(name):
            raise ConfigError(f"{section}: {name} is missing.")
    if config.get("quantization") and "peft" not in config:
        raise ConfigError("quantization: a quantised model trains with an adapter only. Add a section peft.")
    check_metric(
        config["training"],
        ["loss", "accuracy", "f1_macro", *(["f1_micro"] if config["data"].get("multi_label") else [])],
    )
    return config


def check_metric(settings, known):
    """Raises when the best checkpoint would be chosen by a score that no evaluation gives, or by its worse side."""
    metric = str(settings.get("metric_for_best_model") or "loss").removeprefix("eval_")
    if metric not in known:
        raise ConfigError(f"training: metric_for_best_model is {metric}, and the evaluation gives {', '.join(known)}.")
    if settings.get("greater_is_better") is (metric == "loss"):
        raise ConfigError(f"training: with this greater_is_better the worst {metric} is the best one. Leave it out.")


def gpu_has_bf16():
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def checkpointing(config):
    """Whether activations are computed again instead of kept: as set, or when the rest takes half of the GPU."""
    asked = config["training"].get("activation_checkpointing")
    if asked is not None or not torch.cuda.is_available():
        return bool(asked)
    each = 16 if "peft" not in config else 1 if "quantization" in config else 2  # bytes: weight, gradient, AdamW's two
    return each * network(config).num_parameters() > torch.cuda.get_device_properties(0).total_memory / 2


def training_arguments(config):
    settings = {key: value for key, value in config["training"].items() if key != "early_stopping_patience"}
    settings["output_dir"] = str(HERE / settings["output_dir"])
    settings["activation_checkpointing"] = checkpointing(config)
    settings.setdefault("dataloader_pin_memory", torch.cuda.is_available())  # without a GPU torch warns at each epoch
    if torch.cuda.is_available() and not {"bf16", "fp16"} & set(settings):  # fp32 on a CPU, where the others are slow
        settings["bf16" if gpu_has_bf16() else "fp16"] = True  # fp16 comes with scaling of the loss
    for field in dataclasses.fields(TrainingArguments):  # which takes a text for a number, and fails only later
        value = settings.get(field.name)
        if isinstance(field.default, (int, float)) and isinstance(value, str):
            raise ConfigError(f"training: {field.name} is {value!r}, and should be like {field.default}.")
    try:
        arguments = HfArgumentParser(TrainingArguments).parse_dict(settings)[0]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from error
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)  # else a package that is missing is found at the first step
    except (ImportError, ValueError) as error:
        if "to pass a" not in str(error):  # as some ask for the model
            raise ConfigError(f"training: optim is {settings['optim']}. {' '.join(str(error).split())}") from None
    return arguments


def how_it_computes(config, arguments):
    """The device, the numbers that it computes with, and whether activations are kept, in one line."""
    device = torch.cuda.get_device_name() if arguments.device.type == "cuda" else f"the {arguments.device.type.upper()}"
    kind = "bf16" if arguments.bf16 else "fp16 with loss scaling" if arguments.fp16 else "fp32"
    kept = "activations are computed again to save memory" if checkpointing(config) else "activations are kept"
    return f"computes in {kind} on {device}; {kept}"


def differences(before, now):
    """The names of the settings that are not the same."""
    both = {section: (before.get(section, {}), now.get(section, {})) for section in before | now}
    return [f"{s}.{key}" for s, (a, b) in both.items() for key in {**a, **b} if a.get(key) != b.get(key)]


def begin(config, arguments):
    """Notes the settings and the data when a run begins, so that an interrupted one cannot go on with others."""
    noted = Path(arguments.output_dir) / "settings.json"
    settings = dict(config)
    files = [config["data"][part] for part in PARTS]
    settings["content"] = {file: hashlib.sha256(content(file)).hexdigest() for file in files}
    settings["machine"] = {"processes": arguments.world_size * max(1, arguments.n_gpu)}  # with others, other batches
    resumes = noted.exists() and last_whole_checkpoint(arguments.output_dir)
    if resumes and (names := differences(json.loads(noted.read_text()), settings)):
        raise ConfigError(
            f"training: {config['training']['output_dir']} was begun with other settings ({', '.join(names)}). "
            "Set another output_dir, or restore them."
        )
    if arguments.process_index == 0:
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.with_suffix(".part").write_text(json.dumps(settings, indent=1))
        os.replace(noted.with_suffix(".part"), noted)  # whole or not at all


# ---- Data ---------------------------------------------------------------------------------------------


def content(file):
    try:
        return (HERE / file).read_bytes()
    except OSError as error:
        raise ConfigError(f"data: {file} cannot be read: {error.strerror}.") from None


def read_part(part, config):
    """The rows of "train", "validation" or "test"."""
    return read_rows(config["data"][part], config["data"]["labels"], config["data"].get("multi_label"))


def read_rows(file, labels=None, multi_label=False):
    """The rows of a .jsonl file, one object a line, as a `Dataset`; an error names the line that cannot be used."""
    blocks, rows = [], []
    for number, line in enumerate(content(file).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"data: {file}, line {number} is no JSON: {error}.") from None
        if missing := [name for name in COLUMNS if not isinstance(row, dict) or name not in row]:
            raise ConfigError(f"data: {file}, line {number} has no {' and no '.join(missing)}.")
        if not (isinstance(row["text"], str) and row["text"].strip()):
            raise ConfigError(f"data: {file}, line {number} has {json.dumps(row['text'])[:40]} for a text.")
        if multi_label and not isinstance(row["label"], list):
            raise ConfigError(f"data: {file}, line {number} has the label {row['label']}, and needs a list of labels.")
        unknown = [one for one in (row["label"] if multi_label else [row["label"]]) if labels and one not in labels]
        if unknown:
            names = ", ".join(map(str, labels))
            raise ConfigError(f"data: {file}, line {number} has {unknown[0]}, and labels has {names}.")
        rows.append({name: row[name] for name in COLUMNS})
        if len(rows) == 10_000:  # a million rows are not held as Python objects
            blocks, rows = [*blocks, datasets.Dataset.from_list(rows)], []
    blocks += [datasets.Dataset.from_list(rows)] if rows else []
    if not blocks:
        raise ConfigError(f"data: {file} has no rows.")
    return datasets.concatenate_datasets(blocks)


def mapped(rows, function):
    """Rows changed by a function of a batch and its places; many of them go to a file, and memory stays free."""
    many, file = len(rows) > 50_000, None
    if many:
        file = str(Path(tempfile.mkdtemp(prefix="train-")) / "rows.arrow")
    (datasets.enable_progress_bars if many else datasets.disable_progress_bars)()
    named = dict(with_indices=True, remove_columns=rows.column_names, cache_file_name=file)
    new = uuid.uuid4().hex  # else a hash of the function and all it refers to, which takes long
    return rows.map(function, batched=True, new_fingerprint=new, **named)


def load_tokenizer(config):
    tokenizer = AutoTokenizer.from_pretrained(place(config), **revision(config))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError("model: its tokenizer has no token to pad with, and none for an end. Set its pad_token.")
    most, length = longest(config, tokenizer), config["data"].get("max_length") or 0
    if length > most:
        name = Path(place(config)).name
        raise ConfigError(f"data: max_length is {length}, and {name} has places for {most} tokens.")
    return tokenizer


def longest(config, tokenizer):
    """The most tokens of a row that the model has places for."""
    settings = model_config(config)
    places = getattr(settings, "max_position_embeddings", None) or 1e6
    if settings.model_type in ("roberta", "xlm-roberta", "camembert"):
        places -= 2  # their positions count on from that of the padding
    places -= config.get("peft", {}).get("num_virtual_tokens", 0)
    return int(min(places, tokenizer.model_max_length))


def encode(rows, tokenizer, config):
    """Texts as token ids, and the number of each label; the collator pads, each batch to its longest text.

    With data.stride, a text that is too long becomes several examples, which overlap by so many tokens.
    """
    data = config["data"]
    cut = dict(truncation=True, max_length=data["max_length"])
    if data.get("stride"):
        cut |= dict(return_overflowing_tokens=True, stride=data["stride"])

    def ids(batch, places):
        found = tokenizer(batch["text"], **cut)
        parts = found.pop("overflow_to_sample_mapping", range(len(places)))
        labels = scoring.numbers(batch["label"], config)
        labels = (labels.astype(float) if data.get("multi_label") else labels).tolist()
        found |= {"labels": [labels[i] for i in parts], "row": [places[i] for i in parts]}
        longer = [bool(one.overflowing) and not data.get("stride") for one in found.encodings or []]
        return {**found, "length": list(map(len, found["input_ids"])), "cut": longer or [False] * len(parts)}

    return mapped(rows, ids)


# ---- Model --------------------------------------------------------------------------------------------


def place(config):
    """The model's folder, relative to this one in config.yaml, or its name on the Hub."""
    name = config["model"]["pretrained_model_name_or_path"]
    return str((HERE / name).resolve()) if (HERE / name).is_dir() else name


def model_config(config):
    return AutoConfig.from_pretrained(place(config), **revision(config))


def revision(config):
    return {"revision": config["model"]["revision"]} if config["model"].get("revision") else {}


def task_type(config):
    """The task as peft names it."""
    return "SEQ_CLS"


def network(config):
    """The model with shapes instead of weights: for its layers' names and its size."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(model_config(config))


def block_layers(config):
    """The names of the linear layers that each block of the model has."""
    layers = [name for name, layer in network(config).named_modules() if type(layer).__name__ in ("Linear", "Conv1D")]
    return sorted({re.split(r"\.\d+\.", name)[-1] for name in layers if re.search(r"\.\d+\.", name)})


def new_layers(config):
    """The names of the layers that are new for this task, so they are trained whole, and never in 4 bits."""
    model = network(config)
    pretrained = (model.base_model_prefix, "head")  # a "head" is ModernBERT's, and comes with its weights
    return [name for name, part in model.named_children() if name not in pretrained and list(part.parameters())]


def check_layers(settings, config):
    """Raises for a name of a layer that the model lacks: peft asks only that one of them is there."""
    ends = [f".{name}" for name, _ in network(config).named_modules()]
    for setting in ("target_modules", "modules_to_save"):
        listed = settings.get(setting) if isinstance(settings.get(setting), list) else []
        if lacking := [name for name in listed if not any(end.endswith(f".{name}") for end in ends)]:
            raise ConfigError(f"peft: {setting} has {', '.join(lacking)}, and the model has no layer of that name.")


def peft_config(config):
    """The adapter's configuration, or None; a null for names of layers gets the names that fit the model."""
    if "peft" not in config:
        return None
    settings, kind = dict(config["peft"]), task_type(config)
    if settings.setdefault("task_type", kind) not in (kind, None):
        other = settings["task_type"]
        raise ConfigError(f"peft: task_type is {other}, here it is {kind}: a new layer would be lost. Leave it out.")
    settings["task_type"] = kind
    check_layers(settings, config)
    family, defaults = model_config(config).model_type, {}
    if settings["peft_type"] == "LORA":
        defaults["target_modules"] = block_layers(config)
    if settings["peft_type"] == "IA3" and family in IA3:
        output, feedforward = IA3[family]
        defaults = {"target_modules": [*output, *feedforward], "feedforward_modules": feedforward}
    if "modules_to_save" in settings:
        defaults["modules_to_save"] = new_layers(config)
    settings |= {name: layers for name, layers in defaults.items() if settings.get(name) is None}
    return peft.get_peft_config(settings)


def quantization_config(config):
    """The quantisation's configuration, or None; it computes in bf16 on a GPU that has it, else in fp32."""
    if "quantization" not in config:
        return None
    settings = {"bnb_4bit_compute_dtype": "bfloat16" if gpu_has_bf16() else "float32", **config["quantization"]}
    if settings.get("llm_int8_skip_modules") is None:
        settings["llm_int8_skip_modules"] = new_layers(config)
    if not torch.cuda.is_available():
        # bitsandbytes 0.50 on CPUs with AVX-512 is wrong in two ways, without an error. It computes in bf16 once the
        # model was evaluated, and it takes wrong scales for widths that 64 does not divide: these layers stay whole.
        importlib.import_module("bitsandbytes.nn.modules").has_avx512bf16 = lambda: False
        layers = network(config).named_modules()
        odd = [name for name, layer in layers if getattr(layer, "in_features", 64) % 64]
        settings["llm_int8_skip_modules"] = [*settings["llm_int8_skip_modules"], *odd]
    return BitsAndBytesConfig(**settings)


def load_model(config, trained=None):
    """The model to train, with a new adapter if config.yaml has one; or a finished one, from the folder `trained`."""
    set_seed(config["training"].get("seed", 42))  # what is new in the model starts from random numbers
    settings = {key: value for key, value in config["model"].items() if key != MODEL[0]}
    settings.setdefault("dtype", "bfloat16" if "peft" in config and gpu_has_bf16() else "float32")
    labels = config["data"]["labels"]
    if config["data"].get("multi_label"):
        settings["problem_type"] = "multi_label_classification"  # its loss takes each label by itself
    settings["id2label"] = dict(enumerate(labels))
    settings["label2id"] = {label: number for number, label in enumerate(labels)}
    if "quantization" in config:
        settings["quantization_config"] = quantization_config(config)
    whole = trained is not None and "peft" not in config  # else it is an adapter, which goes on the same base
    model = AutoModelForSequenceClassification.from_pretrained(trained if whole else place(config), **settings)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(config).pad_token_id
    if "quantization" in config:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if "peft" in config and checkpointing(config):
        model.enable_input_require_grads()  # without it no gradient would reach the adapter
    if "peft" in config and trained is None:
        return peft.get_peft_model(model, peft_config(config))
    return peft.PeftModel.from_pretrained(model, trained) if "peft" in config else model


# ---- Training and scores ------------------------------------------------------------------------------


class WeightedTrainer(Trainer):
    """A Trainer in whose loss each class counts as much as any other, however rare it is (data.class_weights)."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        weights = self.weights.to(outputs.logits.device)
        if labels.ndim == 2:  # several labels a row
            loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, labels, pos_weight=weights)
        else:
            loss = torch.nn.functional.cross_entropy(outputs.logits, labels, weight=weights)
        return (loss, outputs) if return_outputs else loss


def class_weights(examples, config):
    """What a row of each class counts: the rarer, the more; with several labels a row, no more than ten times."""
    labels = np.array(examples["labels"][:])
    if config["data"].get("multi_label"):
        return torch.tensor(((1 - labels).sum(0) / np.maximum(labels.sum(0), 1)).clip(1, 10), dtype=torch.float32)
    counts = np.bincount(labels, minlength=len(config["data"]["labels"]))
    return torch.tensor(len(labels) / np.maximum(counts, 1) / (counts > 0).sum(), dtype=torch.float32)


def make_trainer(config, arguments, model, tokenizer, examples, callbacks=()):
    patience, several = config["training"].get("early_stopping_patience"), config["data"].get("multi_label")

    def probabilities(logits, labels):  # in single precision, and nothing else of what the model gives
        return logits.float().sigmoid() if several else logits.float().softmax(-1)

    def scores(results):
        return scoring.scores(scoring.chosen(results.predictions, config), results.label_ids, config)

    trainer = (WeightedTrainer if config["data"].get("class_weights") else Trainer)(
        model,
        arguments,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[*callbacks, *([EarlyStoppingCallback(patience)] if patience else [])],
        compute_metrics=scores,
        preprocess_logits_for_metrics=probabilities,
    )
    if config["data"].get("class_weights"):
        trainer.weights = class_weights(examples["train"], config)
    # The model's loss is the mean of its batch. With accumulation, or several processes, the Trainer would add these
    # means, as it trusts the model to divide by the number of all labels; so let it average them.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def last_whole_checkpoint(folder):
    """The newest checkpoint that is complete, or None: trainer_state.json is written last, so it has to be readable."""
    folders = sorted(Path(folder).glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
    for checkpoint in reversed(folders):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
        except (OSError, ValueError):  # the file is missing, or it was cut short
            continue


def predicted(trainer, examples):
    """The probabilities of each row's labels, a long row's as the mean over its parts; and the mean loss."""
    trainer.args.train_sampling_strategy = "random"  # else the Trainer would give them in the order of their lengths
    order = np.argsort(examples["length"][:], kind="stable")
    output = trainer.predict(examples.select(order), metric_key_prefix="part")
    places = np.array(examples["row"][:])[order]
    summed = np.zeros((places.max() + 1, output.predictions.shape[1]))
    np.add.at(summed, places, output.predictions)
    return summed / np.bincount(places)[:, None], output.metrics["part_loss"]


def go_on(trainer, checkpoint):
    """Trains, from a checkpoint if there is one; of a training that had come to its end the best model is loaded.

    `Trainer` looks at its number of steps only after a step, so from the last checkpoint it would make one too many.
    """
    noted = Path(checkpoint or "") / "trainer_state.json"
    state = TrainerState.load_from_json(noted) if checkpoint else TrainerState()
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or not control.get("should_training_stop"):
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    state.is_world_process_zero = trainer.is_world_process_zero()  # as every process reads the file of the first
    trainer.state, best = state, state.best_model_checkpoint
    keeps_best = trainer.args.load_best_model_at_end and best and Path(best).exists()
    trainer._load_from_checkpoint(best if keeps_best else checkpoint)


def evaluate(trainer, tokenizer, config, rows, examples):
    """What the model gives for the validation and the test rows, beside simple baselines, and what looks wrong.

    Choose settings by the validation rows; look at the test rows once.
    """
    metric, simple = scoring.main_metric(config), scoring.baselines(rows, config)
    results = {"metric": metric, "metrics": {}, "baselines": {}, "predictions": {}, "references": {}}
    results["probabilities"] = {}
    for part in ("validation", "test"):
        probabilities, loss = predicted(trainer, examples[part])
        references = scoring.numbers(rows[part]["label"], config)
        predictions = scoring.chosen(probabilities, config)
        scores = {"loss": loss, **scoring.scores(predictions, references, config)}
        results["metrics"] |= {f"{part}_{name}": value for name, value in scores.items()}
        systems = {"this model": predictions, **{name: one[part] for name, one in simple.items()}}
        made = {name: scoring.statistics(one, references, config) for name, one in systems.items()}
        score = made["this model"][1]
        results["baselines"][part] = verdict.compare({name: one for name, (one, _) in made.items()}, score)
        results["predictions"][part], results["references"][part] = predictions, references
        results["probabilities"][part] = probabilities
    results["history"] = trainer.state.log_history
    results["warnings"] = [
        *scoring.warnings(results, rows, config),
        *verdict.of_few_rows({part: len(rows[part]) for part in PARTS}),
        *verdict.of_the_curve(config, results["history"], metric, len(rows["validation"])),
        *verdict.of_the_cut(
            config, sum(examples["train"]["cut"][:]), len(rows["train"]), longest(config, tokenizer), "data.stride: 32"
        ),
    ]
    return results


def record_file(config):
    folder = HERE / config["training"]["output_dir"]
    return folder.with_name(f"{folder.name}.json")


def save_record(config, trainer, results, rows, seconds):
    """One JSON file for the run beside its folder: what was set, on what machine, what came out; and the report."""
    on_gpu = torch.cuda.is_available()
    record = {"settings": config, "metrics": results["metrics"], "seconds": round(seconds, 1)}
    record |= {name: results[name] for name in ("metric", "baselines", "warnings")}
    record["rows"] = {part: len(rows[part]) for part in PARTS}
    if on_gpu:
        record["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    device = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} {trainer.args.device.type}"
    record["machine"] = {"device_name": device, "python": platform.python_version(), "system": platform.system()}
    libraries = ("torch", "transformers", "datasets", "peft", "accelerate")
    record["versions"] = {library: version(library).partition("+")[0] for library in libraries}
    record["curve"] = trainer.state.log_history
    if trainer.is_world_process_zero():
        kept = json.loads(json.dumps(record), parse_constant=lambda name: None)  # JSON has no NaN
        text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
        record_file(config).write_text(text, encoding="utf-8")
        file = HERE / config["training"]["output_dir"] / "report.html"
        report.write(file, HERE.name, record, scoring.sections(results, rows, config))


def brief_run(config, rate, steps, tokenizer, examples):
    """The scores on the validation rows after so many steps at this rate; they are kept, so it is not run again."""
    output_dir = f"{config['training']['output_dir']}-find/{rate:g}"
    brief = dict(learning_rate=rate, max_steps=steps, output_dir=output_dir, early_stopping_patience=None)
    brief |= dict(eval_strategy="no", load_best_model_at_end=False)
    brief |= dict(save_strategy="steps", save_steps=50, save_total_limit=1)
    asked = {**config, "training": {**config["training"], **brief}}
    if not record_file(asked).exists():
        arguments = training_arguments(asked)
        begin(asked, arguments)
        trainer = make_trainer(asked, arguments, load_model(asked), tokenizer, examples)
        go_on(trainer, last_whole_checkpoint(arguments.output_dir))
        record = {"settings": asked, "metrics": trainer.evaluate()}
        if trainer.is_world_process_zero():
            record_file(asked).write_text(json.dumps(record), encoding="utf-8")
        trainer.accelerator.wait_for_everyone()
    metrics = json.loads(record_file(asked).read_text(encoding="utf-8"))["metrics"]
    names = (scoring.main_metric(config), "loss")
    return {name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics}


def find(path):
    """Tries learning rates in short runs, and writes the best by the validation rows into a copy of the settings."""
    config, tried = read_config(path), {}
    tokenizer, training = load_tokenizer(config), config["training"]
    rows = {part: read_part(part, config) for part in ("train", "validation")}
    examples = {part: encode(rows[part], tokenizer, config) for part in rows}
    batch = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    steps = min(200, int(training.get("num_train_epochs", 3) * max(1, len(examples["train"]) // batch)))
    steps = min(steps, training["max_steps"]) if training.get("max_steps", -1) > 0 else steps
    for factor in (1 / 9, 1 / 3, 1, 3):
        rate = float(f"{training['learning_rate'] * factor:.1e}")
        tried[rate] = brief_run(config, rate, steps, tokenizer, examples)
        print(f"learning_rate {rate:g}: " + ", ".join(f"{name} {value:.4f}" for name, value in tried[rate].items()))
    whole = {rate: made for rate, made in tried.items() if math.isfinite(made["loss"])} or tried
    best = max(whole, key=lambda rate: [-value if name == "loss" else value for name, value in whole[rate].items()])
    said = f"  # the best of {', '.join(f'{rate:g}' for rate in tried)} in {steps} steps, on the validation rows"
    text = (HERE / path).read_text(encoding="utf-8")
    text = re.sub(r"(?m)^  learning_rate:.*$", f"  learning_rate: {best:g}{said}", text)
    text = re.sub(r"(?m)^  output_dir:.*$", f"  output_dir: {training['output_dir']}-found", text)
    found = (HERE / path).with_name(f"{Path(path).stem}-found.yaml")
    found.write_text(text, encoding="utf-8", newline="\n")
    print(f"{best:g} is the best, written into {found.name}: python train.py {found.name}")


# ---- The run: train.ipynb has these steps as its cells ------------------------------------------------


def main(path="config.yaml"):
    # Settings
    started = time.monotonic()
    config = read_config(path)
    arguments = training_arguments(config)
    begin(config, arguments)
    print(yaml.safe_dump({section: config[section] for section in config if section != "data"}, sort_keys=False))
    print(how_it_computes(config, arguments))

    # Data
    tokenizer = load_tokenizer(config)
    rows = {part: read_part(part, config) for part in PARTS}
    examples = {part: encode(rows[part], tokenizer, config) for part in PARTS}
    print({part: f"{len(examples[part])} rows" for part in PARTS})
    print(rows["train"][0], tokenizer.decode(examples["train"][0]["input_ids"]), sep="\n")

    # Model
    model = load_model(config)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{type(model).__name__}: {trainable:,} parameters are trained")

    # Training
    trainer = make_trainer(config, arguments, model, tokenizer, examples)
    checkpoint = last_whole_checkpoint(arguments.output_dir)
    print(f"goes on from {Path(checkpoint).name}" if checkpoint else "begins anew")
    go_on(trainer, checkpoint)

    # Scores
    results = evaluate(trainer, tokenizer, config, rows, examples)
    for part, compared in results["baselines"].items():
        print("", verdict.table(compared, results["metric"], part, len(rows[part])), sep="\n")
    for warning in results["warnings"]:
        print("", f"What looks wrong: {warning}", sep="\n")

    # Results
    trainer.save_model()
    save_record(config, trainer, results, rows, seconds=time.monotonic() - started)
    folder = config["training"]["output_dir"]
    print("", f"saved in {folder}/, with report.html; recorded in {folder}.json", sep="\n")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a console without some letter must not end a training
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="?", default="config.yaml")
    parser.add_argument("--find", action="store_true", help="try a few learning rates first")
    options = parser.parse_args()
    try:
        finished = record_file(read_config(options.settings))
        if options.find:
            find(options.settings)
        elif finished.exists():
            seen = finished.relative_to(HERE)
            print(f"this run is finished, see {seen}. For another set another output_dir in {options.settings}.")
        else:
            main(options.settings)
    except ConfigError as error:
        sys.exit(f"{options.settings}, {error}")
