"""Trains the model that config.yaml describes on the rows in data/.

    python train.py              # or: accelerate launch train.py
    python train.py other.yaml   # another file of settings

A run that was broken off goes on from its last whole checkpoint. A finished run is not run again: it says so.
"""

import copy  # only: generation
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import peft
import torch
import yaml
from rouge_score.rouge_scorer import RougeScorer  # only: generation
from seqeval.metrics import f1_score, precision_score, recall_score  # only: tokens
from sklearn.metrics import accuracy_score, f1_score  # only: classification
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,  # only: decoder
    AutoModelForSeq2SeqLM,  # only: seq2seq
    AutoModelForSequenceClassification,  # only: classification
    AutoModelForTokenClassification,  # only: tokens
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,  # only: generation
    DataCollatorForTokenClassification,  # only: tokens
    DataCollatorWithPadding,  # only: classification
    EarlyStoppingCallback,
    GenerationConfig,  # only: generation
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

AutoModel = AutoModelForSequenceClassification  # only: classification
AutoModel = AutoModelForTokenClassification  # only: tokens
AutoModel = AutoModelForCausalLM  # only: decoder
AutoModel = AutoModelForSeq2SeqLM  # only: seq2seq
Collator = DataCollatorWithPadding  # only: classification
Collator = DataCollatorForTokenClassification  # only: tokens
Collator = DataCollatorForSeq2Seq  # it pads labels with -100, for decoders too  # only: generation

HERE = Path(__file__).resolve().parent  # paths in config.yaml are seen from here
PARTS = ("train", "validation", "test")
MODEL = ("pretrained_model_name_or_path", "revision", "dtype", "attn_implementation", "trust_remote_code")
COLUMNS = ("text", "label")  # only: classification
COLUMNS = ("tokens", "tags")  # only: tokens
COLUMNS = ("messages",)  # only: generation
DATA = (*PARTS, "max_length", "labels")  # only: classification, tokens
DATA = (*PARTS, "max_length", "chat_template")  # only: decoder
DATA = (*PARTS, "max_length")  # only: seq2seq
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


def check(where, given, known):
    """Raises for a name that is not known, with its current or nearest name: none is silently ignored."""
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {given!r}, and should be names with values.")
    for name in given:
        if name not in known or (name in RENAMED and where in ("training", "model")):
            near = "".join(f"; the nearest name is {one}" for one in difflib.get_close_matches(str(name), known, 1))
            told = f"now {RENAMED[name]}" if name in RENAMED else f"not known{near}"
            raise ConfigError(f"{where}: {name} is {told}.")


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
        "generation": list(vars(GenerationConfig())),  # only: generation
        "peft": None,
        "quantization": list(inspect.signature(BitsAndBytesConfig).parameters),
    }
    check("sections", config, list(known))
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
        check(section, config[section], known[section])
    for section, name in (("model", MODEL[0]), ("training", "output_dir"), *(("data", part) for part in PARTS)):
        if not config.get(section, {}).get(name):
            raise ConfigError(f"{section}: {name} is missing.")
    if config.get("quantization") and "peft" not in config:
        raise ConfigError("quantization: a quantised model trains with an adapter only. Add a section peft.")
    return config


def gpu_has_bf16():
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def training_arguments(config):
    settings = {key: value for key, value in config["training"].items() if key != "early_stopping_patience"}
    settings["output_dir"] = str(HERE / settings["output_dir"])
    settings.setdefault("bf16", gpu_has_bf16() and not settings.get("fp16"))  # fp32 on a CPU, where bf16 is slow
    for field in dataclasses.fields(TrainingArguments):  # which takes a text for a number, and fails only later
        value = settings.get(field.name)
        if isinstance(field.default, (int, float)) and isinstance(value, str):
            raise ConfigError(f"training: {field.name} is {value!r}, and should be like {field.default}.")
    try:
        return HfArgumentParser(TrainingArguments).parse_dict(settings)[0]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from error


def peft_config(config):
    return peft.get_peft_config(dict(config["peft"])) if "peft" in config else None


def quantization_config(config):
    if "quantization" not in config:
        return None
    settings = {"bnb_4bit_compute_dtype": "bfloat16" if gpu_has_bf16() else "float32", **config["quantization"]}
    if not torch.cuda.is_available():
        # bitsandbytes 0.50 on CPUs with AVX-512 is wrong in two ways, without an error. It computes in bf16 once the
        # model was evaluated, and it takes wrong scales for widths that 64 does not divide: these layers stay whole.
        importlib.import_module("bitsandbytes.nn.modules").has_avx512bf16 = lambda: False
        with torch.device("meta"):
            network = AutoModel.from_config(AutoConfig.from_pretrained(place(config)))
        odd = [name for name, layer in network.named_modules() if getattr(layer, "in_features", 64) % 64]
        settings["llm_int8_skip_modules"] = [*(settings.get("llm_int8_skip_modules") or []), *odd]
    return BitsAndBytesConfig(**settings)


# only: generation
def generation_config(model, config):
    """The model's own settings for writing, changed by those of config.yaml; it stops at the tokenizer's end too."""
    settings = copy.deepcopy(model.generation_config)
    settings.update(**config.get("generation", {}))
    return settings


# end


def differences(before, now):
    """The names of the settings that are not the same."""
    both = {section: (before.get(section, {}), now.get(section, {})) for section in before | now}
    return [f"{s}.{key}" for s, (a, b) in both.items() for key in {**a, **b} if a.get(key) != b.get(key)]


def begin(config, arguments):
    """Notes the settings and the data when a run begins, so that one that was broken off cannot go on with others."""
    noted = Path(arguments.output_dir) / "settings.json"
    settings = {section: config[section] for section in config if section != "generation"}
    files = [config["data"][part] for part in PARTS]
    settings["content"] = {file: hashlib.sha256(content(file)).hexdigest() for file in files}
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


def read_rows(file, labels=None):
    """The rows of a .jsonl file, one object a line; what cannot be used is said with its line."""
    rows = []
    for number, line in enumerate(content(file).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"data: {file}, line {number} is no JSON: {error}.") from None
        if missing := [name for name in COLUMNS if not isinstance(row, dict) or name not in row]:
            raise ConfigError(f"data: {file}, line {number} has no {' and no '.join(missing)}.")
        # only: classification, tokens
        said = [row["label"]]  # only: classification
        said = row["tags"]  # only: tokens
        if strange := [label for label in said if labels and label not in labels]:
            raise ConfigError(
                f"data: {file}, line {number} has {strange[0]}, and labels has {', '.join(map(str, labels))}."
            )
        # end
        rows.append(row)
    return rows


def place(config):
    """The model's folder, seen from here, or its name on the Hub."""
    name = config["model"]["pretrained_model_name_or_path"]
    return str((HERE / name).resolve()) if (HERE / name).is_dir() else name


def load_tokenizer(config):
    settings = {key: config["model"][key] for key in ("revision", "trust_remote_code") if key in config["model"]}
    tokenizer = AutoTokenizer.from_pretrained(place(config), **settings)
    if tokenizer.pad_token is None:  # the labels are made before padding, so an end that is one still counts
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = config["data"].get("chat_template") or tokenizer.chat_template  # only: decoder
    return tokenizer


# only: classification
def encode(rows, tokenizer, config):
    """Texts as token ids, and the number of each label; the collator pads, each batch to its longest text."""
    labels, cut = config["data"]["labels"], dict(truncation=True, max_length=config["data"]["max_length"])
    return [{**tokenizer(row["text"], **cut), "labels": labels.index(row["label"])} for row in rows]


# end
# only: tokens
def encode(rows, tokenizer, config):
    """Words as token ids, with the number of each word's tag on its first token; -100 elsewhere, which is skipped."""
    tags, cut, examples = config["data"]["labels"], dict(truncation=True, max_length=config["data"]["max_length"]), []
    for row in rows:
        ids = tokenizer(row["tokens"], is_split_into_words=True, **cut)
        words = ids.word_ids()
        first = [word is not None and word != before for word, before in zip(words, [None, *words])]
        labels = [tags.index(row["tags"][word]) if is_first else -100 for word, is_first in zip(words, first)]
        examples.append({**ids, "labels": labels})
    return examples


# end
# only: decoder
def prompt_ids(messages, tokenizer):
    """A conversation up to where the answer begins."""
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def chat_example(messages, tokenizer):
    """A conversation as token ids; the answers count, with their ends; the other tokens have -100, which is skipped."""
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    special, labels = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder), [-100] * len(whole)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = prompt_ids(messages[:i], tokenizer)
            end = tokenizer.apply_chat_template(messages[: i + 1])["input_ids"]
            stop = max((at + 1 for at in range(len(start), len(end)) if end[at] in special), default=0)
            if whole[: len(start)] != start or whole[: len(end)] != end or not stop:
                raise ValueError(f"the chat template does not show where this answer begins and ends: {message}")
            labels[len(start) : stop] = whole[len(start) : stop]  # some templates go on after the end
    return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels}


def encode(rows, tokenizer, config):
    """Conversations as token ids; an answer is never cut, so rows that are too long are left out."""
    examples = [chat_example(row["messages"], tokenizer) for row in rows]
    short = [example for example in examples if len(example["input_ids"]) <= config["data"]["max_length"]]
    print(f"{len(examples) - len(short)} of {len(examples)} rows are longer than max_length and left out")
    return short


# end
# only: seq2seq
def prompt_ids(messages, tokenizer):
    """What is asked: all messages but the answer."""
    return tokenizer("\n".join(message["content"] for message in messages))["input_ids"]


def encode(rows, tokenizer, config):
    """Pairs of texts as token ids; an answer is never cut, so rows that are too long are left out."""
    examples = []
    for *asked, answer in (row["messages"] for row in rows):
        ids, labels = prompt_ids(asked, tokenizer), tokenizer(text_target=answer["content"])["input_ids"]
        labels += [tokenizer.eos_token_id] if labels[-1] != tokenizer.eos_token_id else []
        examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    longest, lengths = config["data"]["max_length"], [max(len(e["input_ids"]), len(e["labels"])) for e in examples]
    short = [example for example, length in zip(examples, lengths) if length <= longest]
    print(f"{len(examples) - len(short)} of {len(examples)} rows are longer than max_length and left out")
    return short


# end
# ---- Model --------------------------------------------------------------------------------------------


def load_model(config, trained=None):
    """The model to train, with a new adapter if config.yaml has one; or a finished one, from the folder `trained`."""
    set_seed(config["training"].get("seed", 42))  # what is new in the model starts from random numbers
    settings = {key: value for key, value in config["model"].items() if key != MODEL[0]}
    settings.setdefault("dtype", "bfloat16" if "peft" in config and gpu_has_bf16() else "float32")
    labels = config["data"]["labels"]  # only: classification, tokens
    settings["id2label"] = dict(enumerate(labels))  # only: classification, tokens
    settings["label2id"] = {label: number for number, label in enumerate(labels)}  # only: classification, tokens
    if "quantization" in config:
        settings["quantization_config"] = quantization_config(config)
    whole = trained is not None and "peft" not in config  # else it is an adapter, that goes on the same base
    model = AutoModel.from_pretrained(trained if whole else place(config), **settings)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(config).pad_token_id
    if "quantization" in config:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if "peft" in config and config["training"].get("activation_checkpointing"):
        model.enable_input_require_grads()  # without it no gradient would reach the adapter
    if "peft" in config and trained is None:
        return peft.get_peft_model(model, peft_config(config))
    return peft.PeftModel.from_pretrained(model, trained) if "peft" in config else model


# only: classification
def best(logits, labels):
    """The likeliest class, so that not all logits are kept until the end of an evaluation."""
    return logits.argmax(-1)


def scores(found):
    said, right = found.predictions, found.label_ids
    f1 = f1_score(right, said, average="macro", zero_division=0)
    return {"accuracy": accuracy_score(right, said), "f1_macro": f1}


# end
# only: tokens
def best(logits, labels):
    """The likeliest tag, so that not all logits are kept until the end of an evaluation."""
    return logits.argmax(-1)


def scores_for(tags):
    def scores(found):
        """Of whole entities: one counts as found when its kind, beginning and end are right."""
        rows = [list(zip(*row)) for row in zip(found.predictions, found.label_ids)]
        said = [[tags[answer] for answer, tag in row if tag != -100] for row in rows]
        right = [[tags[tag] for _, tag in row if tag != -100] for row in rows]
        named = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
        return {name: float(score(right, said, zero_division=0)) for name, score in named.items()}

    return scores


# end
# only: generation
@torch.no_grad()
def write(model, tokenizer, config, talks, batch_size=16):
    """What the model answers to conversations, each a list of messages that ends with the user's."""
    settings, said = generation_config(model, config), []
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    settings.eos_token_id = sorted({tokenizer.eos_token_id, *ends} - {None})
    settings.pad_token_id = tokenizer.pad_token_id
    model.eval()
    for start in range(0, len(talks), batch_size):
        asked = {"input_ids": [prompt_ids(talk, tokenizer) for talk in talks[start : start + batch_size]]}
        batch = tokenizer.pad(asked, padding_side="left", return_tensors="pt").to(model.device)
        ids = model.generate(**batch, generation_config=settings)
        ids = ids[:, batch["input_ids"].shape[1] :]  # only: decoder
        said += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in said]


# end
def make_trainer(config, arguments, model, tokenizer, examples, callbacks=()):
    patience = config["training"].get("early_stopping_patience")
    scored = dict(compute_metrics=scores, preprocess_logits_for_metrics=best)  # only: classification
    scored = dict(compute_metrics=scores_for(config["data"]["labels"]))  # only: tokens
    scored["preprocess_logits_for_metrics"] = best  # only: tokens
    trainer = Trainer(
        model,
        arguments,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        data_collator=Collator(tokenizer),
        processing_class=tokenizer,
        callbacks=[*callbacks, *([EarlyStoppingCallback(patience)] if patience else [])],
        **scored,  # only: classification, tokens
    )
    # only: classification, tokens, seq2seq
    # The model's loss is the mean of its batch. With accumulation, or several processes, the Trainer would add these
    # means, as it trusts the model to divide by the number of all labels; so let it average them.
    trainer.model_accepts_loss_kwargs = False
    # end
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


def test(trainer, tokenizer, config, rows, examples):
    """The scores on the validation and the test rows. Choose settings by the first; look at the second once."""
    found = trainer.evaluate(examples["validation"], metric_key_prefix="validation")
    found |= trainer.evaluate(examples["test"], metric_key_prefix="test")
    # only: generation
    talks = [row["messages"] for row in rows["test"]]
    said = write(trainer.model, tokenizer, config, [talk[:-1] for talk in talks])
    pairs = [(text, talk[-1]["content"].strip()) for text, talk in zip(said, talks)]
    rouge = RougeScorer(["rougeL"])
    found["test_exact_match"] = sum(text == right for text, right in pairs) / len(pairs)
    found["test_rougeL"] = sum(rouge.score(right, text)["rougeL"].fmeasure for text, right in pairs) / len(pairs)
    # end
    timed = ("_runtime", "_per_second", "_model_preparation_time")
    return {name: value for name, value in found.items() if name != "epoch" and not name.endswith(timed)}


def record_file(config):
    folder = HERE / config["training"]["output_dir"]
    return folder.with_name(f"{folder.name}.json")


def save_record(config, trainer, metrics, seconds):
    """One JSON file for the run, beside its folder: what was set, on what, and what came out."""
    on_gpu = torch.cuda.is_available()
    record = {"settings": config, "metrics": metrics, "seconds": round(seconds, 1)}
    if on_gpu:
        record["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    device = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} {trainer.args.device.type}"
    record["machine"] = {"device_name": device, "python": platform.python_version(), "system": platform.system()}
    libraries = ("torch", "transformers", "peft", "accelerate")
    record["versions"] = {library: version(library).partition("+")[0] for library in libraries}
    record["curve"] = trainer.state.log_history
    if trainer.is_world_process_zero():
        record_file(config).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- The run: train.ipynb has these steps as its cells -------------------------------------------------


def main(path="config.yaml"):
    # %% Settings. They are in config.yaml, under the libraries' own names; a name that no library knows is an error.
    started = time.monotonic()
    config = read_config(path)
    arguments = training_arguments(config)
    begin(config, arguments)
    print(yaml.safe_dump({section: config[section] for section in config if section != "data"}, sort_keys=False))

    # %% Data. The rows as they are in data/, and the first of them as the model will see it.
    tokenizer = load_tokenizer(config)
    rows = {part: read_rows(config["data"][part], config["data"].get("labels")) for part in PARTS}
    examples = {part: encode(rows[part], tokenizer, config) for part in PARTS}
    print({part: f"{len(examples[part])} rows" for part in PARTS})
    print(rows["train"][0], tokenizer.decode(examples["train"][0]["input_ids"]), sep="\n")

    # %% Model. What of it will be trained?
    model = load_model(config)
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    print(f"{type(model).__name__}: {trainable:,} numbers are trained")

    # %% Training. It goes on from the last whole checkpoint, if there is one.
    trainer = make_trainer(config, arguments, model, tokenizer, examples)
    checkpoint = last_whole_checkpoint(arguments.output_dir)
    print(f"goes on from {Path(checkpoint).name}" if checkpoint else "begins anew")
    trainer.train(resume_from_checkpoint=checkpoint)

    # %% Test. Once, when nothing is left to choose.
    metrics = test(trainer, tokenizer, config, rows, examples)
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")

    # %% Keep. The model (or its adapter) for predict.py, and a record of the run.
    trainer.save_model()
    save_record(config, trainer, metrics, seconds=time.monotonic() - started)
    print(f"saved in {config['training']['output_dir']}/, recorded in {config['training']['output_dir']}.json")


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "config.yaml"
    try:
        finished = record_file(read_config(path))
        if finished.exists():
            print(
                f"this run is finished, see {finished.relative_to(HERE)}. For another set another output_dir in {path}."
            )
        else:
            main(path)
    except ConfigError as error:
        sys.exit(f"{path}, {error}")
