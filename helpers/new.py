"""A project of your own: from a task, a model and your data to a folder that trains, goes on and predicts.

    python -m helpers.new classification "my reviews" --data reviews.csv --text comment --label stars
    python -m helpers.new generation answers --data chats.jsonl --method qlora --model org/name

The folder holds train.py, predict.py, train.ipynb, config.yaml, requirements.txt, README.md and data/; nothing in it
imports `helpers` unless you ask for the panel. Its files come from `helpers/templates`: real files, in which lines and
blocks are marked with what they are for (`# only: tokens`), and kept or dropped. The notebook is `main` of train.py cut
into cells, so there is one source of the steps. Everything is checked before anything is written, in part by the
project's own code; then the folder is built beside its place, and renamed at the end.
"""

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections import Counter
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from helpers import data as tables
from helpers import env, record

TEMPLATES = Path(__file__).parent / "templates"
METHODS = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "qlora": "LoRA on a 4-bit base (QLoRA)",
    "prefix": "prefix tuning",
    "ia3": "IA3",
}
KINDS = {  # task: the kinds of models that do it, and what to say of the others
    "classification": (("encoder", "decoder"), "For an encoder-decoder take the task generation"),
    "tokens": (("encoder",), "A tag may depend on words to the right, which a decoder does not see"),
    "generation": (("decoder", "encoder-decoder"), "An encoder does not write"),
}
SAMPLES = {  # a model and data of ours, for a project that has none yet
    "classification": ("tiny-encoder", "reviews/validation.csv", {}),
    "tokens": ("tiny-encoder", "entities/validation.json", {}),
    "decoder": ("tiny-decoder", "chat/validation.jsonl", {}),
    "encoder-decoder": ("tiny-seq2seq", "titles/validation.json", {"prompt": "review", "answer": "title"}),
}
PEFT_TASKS = {
    "classification": "SEQ_CLS",
    "tokens": "TOKEN_CLS",
    "decoder": "CAUSAL_LM",
    "encoder-decoder": "SEQ_2_SEQ_LM",
}
RATES = {"full": (5e-4, 2e-5), "lora": (3e-3, 2e-4), "qlora": (2e-3, 2e-4), "prefix": (1e-2, 1e-2), "ia3": (1e-2, 3e-3)}
TINY = 20_000_000  # parameters: a smaller model starts at the first rate, as in the notebooks, a larger at the second
IA3 = {  # layers whose output is scaled, and whose input; for families that peft has no default for
    "albert": (["key", "value"], ["ffn_output"]),
    "distilbert": (["k_lin", "v_lin"], ["lin2"]),
    "modernbert": (["Wqkv"], ["mlp.Wo"]),
}
PLAIN_CHAT = (  # for decoders without a chat template: a prompt ends with a colon, an answer begins with a space
    "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token if m.role == 'assistant' else '') + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
BASE = (
    " The base is a folder outside this one, at the path given there. To hand the project on alone, copy "
    "that folder into it, under the same name, and set `pretrained_model_name_or_path` to it."
)
REQUIRED = ("torch", "transformers", "accelerate", "peft", "PyYAML")
NEEDED = {"classification": "scikit-learn", "tokens": "seqeval", "generation": "rouge_score", "qlora": "bitsandbytes"}
RENAMED = {"epochs": "num_train_epochs", "rank": "r", "alpha": "lora_alpha"}  # as records of the notebooks have them
VARIANTS = {"dora": "use_dora", "rslora": "use_rslora"}  # LoRA with a setting of its own
MARK = re.compile(r"\s*(?:#|<!--) (?:only: ([\w, ]+?)|(end))(?: -->)?$")


# ---- The two calls -------------------------------------------------------------------------------------


def project(
    task, name, *, model=None, data=None, method="lora", labels=None, text="text", label="label", tokens="tokens",
    tags="tags", prompt=None, answer=None, settings=None, panel=False,
):  # fmt: skip
    """Makes the folder `name`: a project that trains `model` for `task` on your data. Returns its path.

    `task` is "classification", "tokens" (a tag for each word) or "generation" (answers, summaries, translations, chat).
    `model` is a name in data/models, a folder or a Hub id. `data` is a file, or files to train and test, or to train,
    validate and test; what is missing is split off, equal texts on one side. Without it a sample of ours is taken.
    `text` and `label` (or `tokens` and `tags`; or `prompt` and `answer`, see `data.to_messages`) name your columns.
    `labels` gives them an order, or words to numbers; without it they are read from the data. `settings` changes
    config.yaml: {"training.seed": 1}. With `panel` the notebook has the memory check and the tuning panel, and needs
    `helpers`.

    Raises `ValueError` (or `OSError` for a model that is not there) for all that would not work: a folder that exists,
    data with mistakes, a model that cannot do the task or be trained by the method, a setting that no library knows.
    Then nothing was written.

    >>> folder = project("classification", Path(tempfile.mkdtemp()) / "my reviews")
    my reviews: 480 rows to train, 60 to validate, 60 to test. Now: cd "my reviews" and python train.py
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'config.yaml', 'data', 'predict.py', 'requirements.txt', 'train.ipynb', 'train.py']

    Taught in README.md, "From notebook to project".
    """
    place = _free(name)
    _one_of("task", task, KINDS)
    _one_of("method", method, METHODS)
    source = model or SAMPLES.get(task, SAMPLES["decoder"])[0]
    path = env.model_path(source)
    kind, config = _model(task, source, path)
    what = kind if task == "generation" else task
    columns = dict(text=text, label=label, tokens=tokens, tags=tags, prompt=prompt, answer=answer)
    if data is None:
        data, columns = env.DATA / SAMPLES[what][1], columns | SAMPLES[what][2]
        if not data.exists():
            raise ValueError("this installation has no sample data: pass data= (--data), a file of yours.")
    splits, labels, told = _rows(task, [data] if isinstance(data, (str, Path)) else list(data), columns, labels)

    marks = {task, {"decoder": "decoder", "encoder-decoder": "seq2seq"}.get(what, task)}
    files = {file: _kept(TEMPLATES / file, marks | {method}) for file in ("train.py", "predict.py", "README.md")}
    with _imported(files["train.py"]) as train:

        def configured(method):
            text = _kept(TEMPLATES / "config.yaml", marks | {method})
            return _configured(text, train, what, config, path, method, labels, settings or {}, splits)

        try:
            files["config.yaml"], checked, expected, left_out = configured(method)
        except _Untrainable as error:
            possible = [other for other in METHODS if other != method and _works(configured, other)]
            raise ValueError(
                f"{source} cannot be trained by {METHODS[method]} ({error}). Possible: {', '.join(possible) or 'none'}."
            ) from error
    local = Path(path).is_dir()
    if local:  # seen from the project, so that both can be moved together
        seen = {"model.pretrained_model_name_or_path": os.path.relpath(path, place)}
        files["config.yaml"] = _with_settings(files["config.yaml"], seen)
    about = dict(PROJECT_NAME=place.name, MODEL_NAME=Path(path).name if local else path, METHOD_NAME=METHODS[method])
    about["BASE_TEXT"] = BASE if local else ""
    about |= dict(LABELS=", ".join(labels or []), MEMORY_TEXT=expected, SAMPLE_TEXT=_sample(task, splits))
    for word, value in {**about, "DATA_TEXT": "\n".join([*told, *left_out]).strip()}.items():
        files["README.md"] = files["README.md"].replace(word, value)
    files["train.ipynb"] = _notebook(files["train.py"], place.name, PEFT_TASKS[what] if panel else None)
    files["requirements.txt"] = _requirements(task, method, checked)
    for part, rows in splits.items():
        files[f"data/{part}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _build(place, files)
    sizes = [len(splits[part]) for part in ("train", "validation", "test")]
    print("{}: {} rows to train, {} to validate, {} to test.".format(place.name, *sizes), end=" ")
    print(f'Now: cd "{place.name}" and python train.py')
    return place


def from_record(run, task, name, **options):
    """Makes a project with the settings of a recorded run, of a panel, a notebook or another project. Returns its path.

    `run` is a record or its file. Carried are the model, the method and what config.yaml has a place for, and it is
    said what is not. `options` are those of `project`, and go before the record's. `ValueError` when neither they nor
    the record say a method of ours (a rate that suits one does not suit another), or when it began from random weights.

    >>> run = {"settings": {"model": "tiny-encoder", "learning_rate": 1e-3, "rank": 4, "start": "pretrained"}}
    >>> folder = from_record(run, "classification", Path(tempfile.mkdtemp()) / "reviews")
    carried: model, training.learning_rate, peft.r; config.yaml has no place for start
    reviews: 480 rows to train, 60 to validate, 60 to test. Now: cd "reviews" and python train.py

    Taught in README.md, "From notebook to project".
    """
    file = Path(run).resolve() if isinstance(run, (str, Path)) else None
    found, settings, rest = _flat((record.load(file) if file else run)["settings"]), {}, []
    for folder in file.parents[:3] if file else ():  # a project's record names its model's folder as seen from there
        if "model" in found and (folder / found["model"] / "config.json").exists():
            found["model"] = str((folder / found["model"]).resolve())
    found = {key: value for key, value in found.items() if "." in key or value is not None}
    said = found.get("way", found.get("method"))
    begun = "a random base" if "random base" in str(said) else found.get("start", "pretrained")
    if begun != "pretrained":
        raise ValueError(f"the record's run began from {begun}; a project begins from a pretrained model.")
    method = _method(found) or ("lora" if {"r", "rank", "lora_alpha", "alpha"} & set(found) else None)
    if not (method or "method" in options):  # a rate that suits one method does not suit another
        how = f'the record\'s way is "{said}"' if said else "the record does not say how it was trained"
        raise ValueError(f"{how}: pass method=, one of {', '.join(METHODS)}, and a rate that suits it.")
    options = {"model": found.pop("model", None), **({"method": method} if method else {}), **options}
    for key, value in found.items():
        key = _in_config(key, options.get("method", "lora"))
        if "." in key:
            settings[key] = value
        else:
            rest.append(key)
    carried = [*(["model"] if options["model"] else []), *settings]
    print(f"carried: {', '.join(carried)}" + (f"; config.yaml has no place for {', '.join(rest)}" if rest else ""))
    options["settings"] = settings | (options.get("settings") or {})
    return project(task, name, **options)


# ---- Checks --------------------------------------------------------------------------------------------


def _one_of(what, given, known):
    if given not in known:
        near = "".join(f" (closest: {one})" for one in get_close_matches(str(given), known, 1))
        raise ValueError(f'{what} "{given}" is not one of {", ".join(known)}{near}.')


def _free(name):
    """The project's folder, which must not be there yet, in one that is."""
    place = Path(name).expanduser().resolve()
    if not place.name:
        raise ValueError("the project needs a name.")
    if os.path.lexists(place):
        raise ValueError(f"{place.name} is there already. Take another name, or move it away.")
    if not place.parent.is_dir():
        raise ValueError(f"there is no folder {place.parent} to make {place.name} in. Make it first.")
    return place


def _model(task, source, path):
    """What kind of model it is, and its configuration; an error when it cannot do the task."""
    import transformers

    env.quiet()
    found, _ = transformers.PreTrainedConfig.get_config_dict(path)
    known = transformers.CONFIG_MAPPING
    if found.get("model_type") not in known:
        raise ValueError(f"{source} is of the type {found.get('model_type')}, which this transformers does not know.")
    config = known[found["model_type"]].from_dict(found)
    kind = "encoder-decoder" if config.is_encoder_decoder else None
    for name, mapping in (("encoder", "MASKED_LM"), ("decoder", "CAUSAL_LM")):
        kind = kind or (name if type(config) in getattr(transformers, f"MODEL_FOR_{mapping}_MAPPING") else None)
    kinds, why = KINDS[task]
    if kind not in kinds:
        raise ValueError(
            f"{source} is {'an' if kind and kind[0] == 'e' else 'a'} {kind or 'model of another kind'} "
            f"({config.model_type}), and {task} needs a model that is {' or '.join(kinds)}. {why}."
        )
    return kind, config


def _rows(task, files, columns, labels):
    """The rows of each split as the project has them, their labels, and lines that tell what was done to them."""
    if len(files) > 3:
        raise ValueError(f"{len(files)} files: pass one, or two (train, test), or three (train, validation, test).")
    names = {1: ["train"], 2: ["train", "test"], 3: ["train", "validation", "test"]}[len(files)]
    found = {name: tables.read(file) for name, file in zip(names, files, strict=True)}
    one = next(iter(found.values())) if len(files) == 1 else found
    one, text, more = _checked(task, one, columns, labels)
    twice = _twice(one, text, {"tokens": columns["tags"], "generation": "messages"}.get(task, columns["label"]))
    if len(files) == 1:
        splits = tables.split(one, label=columns["label"], text=text)
    elif len(files) == 2:
        parts = tables.split(one["train"], label=columns["label"], text=text, test=0)
        splits = {**parts, "test": one["test"]}
    else:
        splits = one
    leaks, given = tables.overlaps(splits, text=text).leaks, len(splits["train"])
    splits = tables.without_overlaps(splits, text=text)
    if not len(splits["train"]):
        others = " or ".join(name for name in splits if name != "train")
        raise ValueError(
            f"no row to train on is left: the texts of all {given} are, but for case and punctuation, in {others} too. "
            "Pass files that differ, or one file, which is split."
        )
    told = [f"From {', '.join(Path(str(file)).name for file in files)}, which was only read:", ""]
    told += [f"* `data/{part}.jsonl`: {len(splits[part])} rows" for part in ("train", "validation", "test")]
    left_out = f"Rows to train whose text is, but for case and punctuation, in another part: {leaks}, left out."
    told += ["", *([left_out] if leaks else []), *twice, *more]
    return *_plain(task, splits, columns), told


def _twice(rows, text, label):
    """Lines that count the rows that are there twice, and the texts that have two labels; they are kept."""
    parts = rows.values() if isinstance(rows, dict) else [rows]
    pairs = Counter(
        (json.dumps(given, ensure_ascii=False), json.dumps(said))
        for part in parts
        for given, said in zip(part[text][:], part[label][:], strict=True)
    )
    again, texts = sum(pairs.values()) - len(pairs), Counter(given for given, _ in pairs)
    two = [given for given, count in texts.items() if count > 1]
    told = [f"Rows that are there already, with the same text and the same answer: {again}, kept."] if again else []
    return told + ([f"Texts with more than one answer: {len(two)}, kept, such as {two[0][:80]}."] if two else [])


def _checked(task, rows, columns, labels):
    """The rows after the checks of `helpers.data`, the column whose equal texts belong together, and what to tell."""
    read, wanted = ("tokens", "tags") if task == "tokens" else ("text", "label")
    check = tables.check_tokens if task == "tokens" else tables.check
    named = {read: columns[read], wanted: columns[wanted], "duplicates": "ignore"}
    try:
        if task == "generation":
            if labels is not None:
                raise ValueError("labels are for classification and tokens: leave them out.")
            rows = tables.to_messages(rows, prompt=columns["prompt"], answer=columns["answer"])
            return _each(rows, _with_asked), "asked", []
        words = _words_for_numbers(_values(rows, columns[wanted]), labels)
        found = check(rows, **named, labels=None if words else labels)
    except tables.DataError as error:
        options = {"classification": "--text and --label", "tokens": "--tokens and --tags"}
        hint = f" Your columns are named by {options.get(task, '--prompt and --answer')}."
        raise ValueError(f"{error}{hint if 'has no column' in str(error) else ''}") from None
    if words:  # the classes are in the order of the numbers, and get their words
        from datasets import ClassLabel

        found = _each(found, lambda part: part.cast_column(columns[wanted], ClassLabel(names=list(words.values()))))
        return found, columns[read], ["", f"Labels: {', '.join(f'{n} is {word}' for n, word in words.items())}."]
    balance = tables.class_balance(found, label=columns[wanted])
    seen = set(balance[balance["count"] > 0].index.get_level_values("class"))
    unseen = [str(name) for name in labels or [] if str(name) not in seen]
    if unseen:
        raise ValueError(f"no row has the label {', '.join(unseen)}; the data have {', '.join(sorted(seen))}.")
    return found, columns[read], []


def _values(rows, column):
    """The different labels of the rows to train on; none when there is no such column, or tags in it."""
    first = next(iter(rows.values())) if isinstance(rows, dict) else rows
    if column not in first.column_names or isinstance(first[0][column], list):
        return []
    return sorted(map(str, first.unique(column)))


def _words_for_numbers(values, labels):
    """{number: word} when the labels are as many whole numbers as words are given; else nothing."""
    numeric = values and all(re.fullmatch(r"\d+", value) for value in values)
    if not numeric or len(labels or []) != len(values) or any(re.fullmatch(r"\d+", str(word)) for word in labels):
        return {}
    return dict(zip(sorted(values, key=int), labels, strict=True))


def _each(rows, change):
    return {name: change(part) for name, part in rows.items()} if isinstance(rows, dict) else change(rows)


def _with_asked(rows):
    """With a column of what is asked, all messages but the answer: rows that ask the same belong together."""
    asked = ["\n".join(message["content"] for message in talk[:-1]) for talk in rows["messages"][:]]
    return rows.select_columns(["messages"]).add_column("asked", asked)


def _plain(task, splits, columns):
    """Rows as dicts, with the columns that train.py reads and words for labels; and the labels in their order."""
    if task == "generation":
        return {part: rows.select_columns(["messages"]).to_list() for part, rows in splits.items()}, None
    read, wanted = ("tokens", "tags") if task == "tokens" else ("text", "label")
    feature = splits["train"].features[columns[wanted]]
    names = feature.feature.names if task == "tokens" else feature.names

    def words(numbers):
        return [names[number] for number in numbers] if task == "tokens" else names[numbers]

    def plain(rows):
        pairs = zip(rows[columns[read]][:], rows[columns[wanted]][:], strict=True)
        return [{read: given, wanted: words(numbers)} for given, numbers in pairs]

    return {part: plain(rows) for part, rows in splits.items()}, names


# ---- Settings ------------------------------------------------------------------------------------------


def _configured(text, train, what, config, path, method, labels, settings, splits):
    """config.yaml, as text and as read; what the README says of memory; and lines for rows that are left out."""
    tokenizer = train.load_tokenizer({"model": {"pretrained_model_name_or_path": path}, "data": {}})
    chosen = {"model.pretrained_model_name_or_path": path} | ({"data.labels": labels} if labels else {})
    text = _with_settings(text, chosen | _chosen(what, method, config, tokenizer, train) | settings)
    (train.HERE / "config.yaml").write_text(text, encoding="utf-8")
    checked, most = train.read_config(), _limit(config, tokenizer, method)
    if checked["data"].get("max_length", 0) > most:
        given, name = checked["data"]["max_length"], Path(path).name
        raise ValueError(f"data.max_length is {given}, and {name} has places for {most} tokens.")
    needs = ("fp16", "bf16", "tf32", "fp16_full_eval", "bf16_full_eval", "deepspeed", "fsdp")  # another machine may do
    here = {name: value for name, value in checked["training"].items() if name not in needs}
    train.training_arguments({**checked, "training": here})
    longest, left_out = _encoded(train, checked, splits)
    return text, checked, _memory(train, checked, PEFT_TASKS[what], longest), left_out


def _chosen(what, method, config, tokenizer, train):
    """What of config.yaml depends on the task, the method and the model's layers; the network has shapes only."""
    import torch

    with torch.device("meta"):
        network = train.AutoModel.from_config(config)
    layers = [name for name, layer in network.named_modules() if type(layer).__name__ in ("Linear", "Conv1D")]
    blocks = sorted({re.split(r"\.\d+\.", name)[-1] for name in layers if re.search(r"\.\d+\.", name)})
    heads = [  # but "head", as ModernBERT calls a layer that is pre-trained
        name
        for name, part in network.named_children()
        if name not in (network.base_model_prefix, "head", "lm_head") and list(part.parameters())
    ]
    written = what in ("decoder", "encoder-decoder")
    most = _limit(config, tokenizer, method)  # a row that holds an answer must not be cut, a text may be
    rate = RATES[method][network.num_parameters() >= TINY]
    chosen = {"training.learning_rate": rate, "data.max_length": min(512 if written else 256, most)}
    if what == "decoder" and not tokenizer.chat_template:
        if not tokenizer.eos_token:
            raise ValueError("its tokenizer has no end token, so the model could not learn to stop. Set eos_token.")
        chosen["data.chat_template"] = PLAIN_CHAT
    if method != "full":
        chosen["peft.task_type"] = PEFT_TASKS[what]
    if method in ("lora", "qlora"):
        chosen["peft.target_modules"] = blocks
    if method == "qlora":
        chosen["quantization.llm_int8_skip_modules"] = ["lm_head"] if written else heads
    if method == "ia3":
        chosen["peft.target_modules"], chosen["peft.feedforward_modules"] = _ia3(config)
    if method in ("lora", "qlora", "ia3") and not written:
        chosen["peft.modules_to_save"] = heads
    return chosen


def _ia3(config):
    from peft.utils import constants

    kind = config.model_type
    scaled = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind)
    if scaled:
        return list(scaled), list(constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind])
    if kind not in IA3:
        raise _Untrainable(f"neither peft nor helpers.new knows which layers of {kind} to scale")
    output, feedforward = IA3[kind]
    return [*output, *feedforward], feedforward


def _limit(config, tokenizer, method):
    """The most tokens of a row that the model has places for."""
    places = getattr(config, "max_position_embeddings", None) or 1e6
    places -= 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0  # they count on from the padding
    places -= 20 if method == "prefix" else 0
    return int(min(places, tokenizer.model_max_length))


def _with_settings(text, settings):
    """config.yaml with other values; its comments stay. A name that a section does not have yet goes to its end."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes a text such as 1e3, which train.py reads as a number: see its Loader."""

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), None)
    lines = text.rstrip("\n").split("\n")
    for name, value in settings.items():
        section, _, key = name.partition(".")
        starts = [i for i, line in enumerate(lines) if line.startswith(f"{section}:")]
        if not starts or not key:
            known = ", ".join(line.partition(":")[0] for line in lines if re.match(r"\w+:", line))
            raise ValueError(f"{name} is no setting: write section.name=value, with a section of {known}.")
        end = next((i for i in range(starts[0] + 1, len(lines)) if not lines[i].startswith("  ")), len(lines))
        place = next((i for i in range(starts[0] + 1, end) if lines[i].startswith(f"  {key}:")), None)
        dumped = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=1e9, allow_unicode=True)
        line = f"  {key}: {dumped.removesuffix('...' + chr(10)).rstrip()}"
        if place is None:
            lines.insert(end, line)
        else:
            comment = re.search(r"  # .*$", lines[place])
            lines[place] = line + (comment[0] if comment else "")
    return "\n".join(lines) + "\n"


def _flat(settings):
    """The settings of a record, with a project's own sections as dotted names."""
    if not isinstance(settings.get("training"), dict):
        return dict(settings)
    found = {"model": settings["model"]["pretrained_model_name_or_path"]}
    kept = ("training", "generation", "peft", "quantization")
    parts = {f"{part}.{key}": value for part in kept for key, value in settings.get(part, {}).items()}
    return found | {key: value for key, value in parts.items() if key != "training.output_dir"}


def _method(found):
    """The method of a run, if its settings say it; what said it is taken out of them."""
    given = found.pop("method", None) or found.pop("way", None)
    said = str(given).lower()
    kind, four_bit = found.get("peft.peft_type"), "quantization.load_in_4bit" in found or found.pop("four_bit", False)
    kinds = {"LORA": "qlora" if four_bit else "lora", "PREFIX_TUNING": "prefix", "IA3": "ia3"}
    if said in METHODS:
        return said
    if said in VARIANTS:
        found[VARIANTS[said]] = True
        return "lora"
    if given:
        found["way"] = given
        return None
    return kinds.get(kind) or ("qlora" if four_bit else "full" if "training.learning_rate" in found else None)


def _in_config(key, method):
    """The dotted name that config.yaml has for a setting of a record, or the name as it is."""
    import dataclasses

    import transformers

    if "." in key:
        return key
    name = RENAMED.get(key, key)
    if name in {field.name for field in dataclasses.fields(transformers.TrainingArguments)}:
        return f"training.{name}"
    own = {"lora": ("r", "lora_alpha", "lora_dropout", *VARIANTS.values()), "prefix": ("num_virtual_tokens",)}
    return f"peft.{name}" if name in own.get(method.removeprefix("q"), ()) else key


# ---- Writing -------------------------------------------------------------------------------------------


def _kept(template, marks):
    """A template with the lines and blocks for these marks, and without the marks."""
    lines, keep = [], True
    for line in template.read_text(encoding="utf-8").splitlines():
        mark = MARK.search(line)
        alone = mark and mark.start() == 0
        wanted = not mark or not mark[1] or bool(marks & set(mark[1].split(", ")))
        if alone:
            keep = wanted
        elif keep and wanted:
            lines.append(line[: mark.start()] if mark else line)
    return re.sub("\n{4,}", "\n\n\n", "\n".join(lines)) + "\n"


@contextlib.contextmanager
def _imported(source):
    """The project's train.py as a module, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder).resolve() / "train.py"
        file.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("project_train", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def _encoded(train, config, splits):
    """The longest row to train on, by the project's own code; and a line for the rows that are left out."""
    tokenizer, left_out, longest = train.load_tokenizer(config), [], 0
    for part, rows in splits.items():
        with contextlib.redirect_stdout(io.StringIO()):
            examples = train.encode(rows, tokenizer, config)
        if len(examples) < len(rows):
            left_out.append(f"Longer than max_length, and left out of {part} by train.py: {len(rows) - len(examples)}.")
        if not examples:
            raise ValueError(f"all rows of {part} are longer than data.max_length={config['data']['max_length']}.")
        if part == "train":
            longest = max(len(example["input_ids"]) for example in examples)
    return longest, left_out


class _Untrainable(ValueError):
    """The libraries cannot train this model by this method."""


def _works(configured, method):
    try:
        configured(method)
    except ValueError:
        return False
    return True


def _memory(train, config, task, longest):
    """What the README says of memory; `_Untrainable` when two steps with shapes instead of numbers cannot be done."""
    from helpers import memory

    training, found, problems = config["training"], None, []
    for device in ("cuda", "cpu"):  # the imitation of CUDA may fail where the model does not
        try:
            found = found or memory.predict(
                train.place(config),
                batch=training["per_device_train_batch_size"],
                length=longest,
                task=task,
                peft=train.peft_config(config),
                quantization_config=train.quantization_config(config),
                dtype="bfloat16" if "peft" in config else "float32",
                autocast="bfloat16",
                activation_checkpointing=bool(training.get("activation_checkpointing")),
                optim=training["optim"] if training["optim"] in memory.OPTIMIZERS else memory.OPTIMIZERS[0],
                device=device,
            )
        except Exception as error:  # whatever the libraries raise when a method does not fit a model
            problems.append(error)
    if found is None:
        raise _Untrainable(str(problems[0]).splitlines()[0].rstrip(".")) from problems[0]
    parts = ", ".join(
        f"{name} {size / memory.GIB:.2f}" for name, size in found.split.items() if size > memory.GIB / 200
    )
    text = (
        f"Expected peak of a training step {'on a GPU' if found.device == 'cuda' else 'on a CPU'} with bf16: "
        f"{found.peak_gib:.2f} GiB ({parts}); CUDA itself takes about {memory.OUTSIDE_GIB} GiB more. That is for "
        f"{training['per_device_train_batch_size']} rows of {longest} tokens, the longest to train on; it was computed "
        "from the configuration when this project was made, not measured. Smaller batches with "
        "`gradient_accumulation_steps`, or `activation_checkpointing`, need less."
    )
    return textwrap.fill(text, 120)


def _sample(task, splits):
    row = splits["test"][0]
    text = row["text"] if task == "classification" else " ".join(row["tokens"]) if task == "tokens" else None
    text = text or row["messages"][-2]["content"]
    return re.sub(r'["$`\\!\s]+', " ", text[:100]).strip()


def _requirements(task, method, config):
    reports = config["training"].get("report_to") or []
    reports = [reports] if isinstance(reports, str) else reports
    wanted = [*REQUIRED, NEEDED[task], *([NEEDED[method]] if method in NEEDED else [])]
    wanted += [name for name in reports if name in ("tensorboard", "wandb", "trackio")]
    return "".join(f"{name}{_pin(name)}\n" for name in wanted)


def _pin(name):
    try:
        return f"=={version(name).partition('+')[0]}"
    except PackageNotFoundError:  # a tracker that is not installed here: any version
        return ""


def _sections(source):
    """(heading, sentence, code) of each part that begins with `# %% Heading. Sentence.`"""
    parts = re.split(r"(?m)^# %% (.*)$\n", source)[1:]
    for title, code in zip(parts[::2], parts[1::2], strict=True):
        heading, _, rest = title.partition(". ")
        yield heading.rstrip("."), rest, code.strip("\n")


def _notebook(source, name, panel):
    """train.ipynb: `main` of train.py cut into cells; with the task's name for `panel`, the panel's cells after it."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    tree = ast.parse(source)
    main = next(node for node in tree.body if getattr(node, "name", None) == "main")
    body = textwrap.dedent("\n".join(source.splitlines()[main.body[0].lineno - 2 : main.end_lineno]))
    extra = (TEMPLATES / "panel.py").read_text(encoding="utf-8").replace("TASK_TYPE", repr(panel)) if panel else ""
    here = {getattr(node, "name", None) for node in tree.body} | {"HERE", "PARTS", "yaml", "time", "Path"}
    used = {node.id for node in ast.walk(ast.parse(body + "\n" + extra)) if isinstance(node, ast.Name)}
    names = sorted(here & used - {"main"}, key=lambda one: (not one.isupper(), one.islower(), one))  # as ruff does
    start = ["from train import (", *(f"    {one}," for one in names), ")", ""]
    start.append('path = "config.yaml"  # or a copy of it with other settings')
    cells = [new_markdown_cell(f"# {name}\n\nThe steps of train.py, one by one. Change config.yaml, not the code.")]
    cells.append(new_code_cell("\n".join(start)))
    for heading, sentence, code in _sections(body + "\n" + extra):
        cells += [new_markdown_cell(f"## {heading}\n\n{sentence}".strip()), new_code_cell(code)]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(new_notebook(cells=cells, metadata={"kernelspec": kernel})) + "\n"


def _build(place, files):
    """Writes all files beside the project's place, and renames the folder at the end: all of it or nothing."""
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    try:
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
        folder.chmod(0o755)  # mkdtemp's own is for one user only
        os.rename(folder, place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


# ---- The command ---------------------------------------------------------------------------------------


def _setting(text):
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write section.name=value, such as training.seed=1")
    return name, yaml.safe_load(value)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m helpers.new", description="Makes a project of your own.")
    parser.add_argument("task", choices=list(KINDS))
    parser.add_argument("name", help="the folder to make")
    parser.add_argument("--model", help="a name in data/models, a folder or a Hub id")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="a file; or train, test; or train, validation, test")
    parser.add_argument("--method", choices=list(METHODS), default="lora")
    parser.add_argument("--labels", nargs="+", help="in the order of their numbers; left out: read from the data")
    for option, task in {"text": 0, "label": 0, "tokens": 1, "tags": 1}.items():
        parser.add_argument(f"--{option}", default=option, help=f"column, for {list(KINDS)[task]} (%(default)s)")
    parser.add_argument("--prompt", help='column, or several as in "{passage} {question}", for generation')
    parser.add_argument("--answer", help="column, for generation")
    parser.add_argument("--set", action="append", type=_setting, default=[], metavar="SECTION.NAME=VALUE")
    parser.add_argument("--panel", action="store_true", help="the notebook gets the panel, and needs helpers")
    given = vars(parser.parse_args(arguments))
    given["settings"] = dict(given.pop("set"))
    try:
        project(given.pop("task"), given.pop("name"), **given)
    except (ValueError, OSError) as error:
        told = re.sub(r"\b(labels|prompt|answer)=(?=[\"\[])", r"--\1 ", f"error: {error}")  # as options of this command
        sys.exit(re.sub(r"\b(labels|prompt|answer)=", r"--\1", told))


if __name__ == "__main__":
    main()
