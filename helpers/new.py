"""A project of your own: from a task, a model and your data to a folder that trains, goes on and predicts.

    python -m helpers.new classification "my reviews" --data reviews.csv --text comment --label stars
    python -m helpers.new generation answers --data chats.jsonl --method qlora --model org/name

The folder is a copy of the example project in `helpers/templates` that does the task: train.py, predict.py,
train.ipynb, config.yaml, README.md and data/. Nothing in it imports `helpers` unless you ask for the panel. Your rows
are checked and split, your settings are filled in, and the project's own code tries them; all that in a folder beside
the project's place, which is renamed when everything is right, and deleted when something is not.
"""

import argparse
import contextlib
import io
import json
import os
import re
import runpy
import shutil
import sys
import tempfile
from collections import Counter
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

from helpers import data as tables
from helpers import env, record

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("train", "predict", "serve", "service", "scoring", "verdict", "report")  # tags are not served
FILES = (*(f"{name}.py" for name in SCRIPTS), "train.ipynb", "config.yaml")
PARTS = ("train", "validation", "test")
SPLITS = {"train": "train", "dev": "validation", "valid": "validation", "validation": "validation", "test": "test"}
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
COLUMNS = {"classification": ("text", "label"), "tokens": ("tokens", "tags"), "generation": ("prompt", "messages")}
RECOMMENDED = {  # what env.recommend gives, and its name in config.yaml
    "learning_rate": "learning_rate",
    "epochs": "num_train_epochs",
    "warmup_ratio": "warmup_steps",
    "batch_size": "per_device_train_batch_size",
}
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "PyYAML")
NEEDED = {"classification": "scikit-learn", "tokens": "seqeval", "generation": "rouge_score", "qlora": "bitsandbytes"}
RENAMED = {"epochs": "num_train_epochs", "rank": "r", "alpha": "lora_alpha"}  # as records of the notebooks have them
VARIANTS = {"dora": "use_dora", "rslora": "use_rslora"}  # LoRA with a setting of its own
MANY = 20_000  # rows: with more, only the longest are tried, and batches are not grouped by length
TRAINING = """learning_rate num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size
    gradient_accumulation_steps activation_checkpointing warmup_steps weight_decay lr_scheduler_type max_grad_norm optim
    adam_beta1 adam_beta2 adam_epsilon label_smoothing_factor seed data_seed train_sampling_strategy
    early_stopping_patience eval_strategy eval_steps save_strategy save_steps load_best_model_at_end
    metric_for_best_model"""
LORA = "r lora_alpha lora_dropout use_dora use_rslora"
CARRIED = {  # what a record may set in config.yaml: numbers and choices, never where something is loaded from or sent
    "training": TRAINING,
    "generation": "max_new_tokens do_sample num_beams repetition_penalty temperature top_k top_p",
    "quantization": "load_in_4bit bnb_4bit_quant_type bnb_4bit_use_double_quant",
    "peft": {"lora": LORA, "qlora": LORA, "prefix": "num_virtual_tokens"},
}


# ---- The two calls -------------------------------------------------------------------------------------


def project(
    task, name, *, model=None, data=None, method=None, labels=None, text="text", label="label", tokens="tokens",
    tags="tags", prompt=None, answer=None, settings=None, panel=False,
):  # fmt: skip
    """Makes the folder `name`: a project that trains `model` for `task` on your data. Returns its path.

    `task` is "classification", "tokens" (a tag for each word) or "generation" (answers, summaries, translations, chat).
    `model` is a name in data/models, a folder or a Hub id. `data` is a file, or files to train and test, or to train,
    validate and test; what is missing is split off, equal texts on one side. Without it a sample of ours is taken.
    `text` and `label` (or `tokens` and `tags`; or `prompt` and `answer`, see `data.to_messages`) name your columns.
    `method` is a name in `METHODS`; left out it is "full" for an encoder, which is small, and "lora" for other models.
    `labels` gives them an order, or words to numbers; without it they are read from the data. `settings` changes
    config.yaml: {"training.seed": 1}. With `panel` there is a notebook with the memory check and the tuning panel too,
    which needs `helpers`.

    Raises `ValueError` (or `OSError` for a model that is not there) for all that would not work: a folder that exists,
    data with mistakes, a model that cannot do the task or be trained by the method, a setting that no library knows.
    Then nothing is left behind.

    >>> folder = project("classification", Path(tempfile.mkdtemp()) / "my reviews")
    my reviews: 480 rows to train, 60 to validate, 60 to test. Now: cd "my reviews" and python train.py
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'config.yaml', 'data', 'predict.py', 'report.py', 'requirements.txt', 'scoring.py', 'serve.py', \
'service.py', 'train.ipynb', 'train.py', 'verdict.py']

    Taught in README.md, "From notebook to project".
    """
    place = _free(name)
    _one_of("task", task, KINDS)
    _one_of("method", method or "lora", METHODS)
    template = TEMPLATES / task
    source = model or ("tiny-decoder" if task == "generation" else "tiny-encoder")
    path = env.model_path(source)
    kind = _check_model(task, source, path)
    method = method or ("full" if kind == "encoder" else "lora")  # tags, MiniLM: F1 0.51 by full, 0.41 by LoRA
    columns = dict(text=text, label=label, tokens=tokens, tags=tags, prompt=prompt, answer=answer)
    files = data or [template / "data" / f"{part}.jsonl" for part in PARTS]
    files = [files] if isinstance(files, (str, Path)) else list(files)
    splits, labels, notes = _rows(task, files, columns, labels)
    fixed, moves = _place_of_model(path, place)
    fixed |= {"data.labels": labels} if labels else {}
    if task == "classification" and not hasattr(splits["train"].features["label"], "names"):  # lists of labels
        fixed |= {"data.multi_label": True, "training.metric_for_best_model": "f1_micro"}
    with _new_folder(place) as folder:
        wanted = (*FILES, "panel.ipynb") if panel else FILES
        for file in (one for one in wanted if (template / one).exists()):
            shutil.copyfile(template / file, folder / file)
        (folder / "data").mkdir()
        for part, rows in splits.items():
            with (folder / "data" / f"{part}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in _as_lines(task, rows, labels))
        config, memory, left_out = _configured(folder, source, method, fixed, settings or {})
        model = Path(path).name if Path(source).is_dir() else source
        lines = [f"The model is {model}, trained by {METHODS[method]}. {moves}".strip(), "", *notes, *left_out, ""]
        lines += ["The expected memory of a training step:", "", "```", *str(memory).splitlines(), "```"]
        readme = (template / "README.md").read_text(encoding="utf-8").partition("## This example")[0].splitlines()
        _write(folder / "README.md", f"# {place.name}", *readme[1:], "## This project", "", *lines)
        _write(folder / "requirements.txt", *map(_pinned, _packages(task, method, config)))
    sizes = "{} rows to train, {} to validate, {} to test.".format(*(len(splits[part]) for part in PARTS))
    print(f'{place.name}: {sizes} Now: cd "{place.name}" and python train.py')
    if moves:
        print(moves)
    return place


def from_record(run, task, name, **options):
    """Makes a project with the settings of a recorded run, of a panel, a notebook or another project. Returns its path.

    `run` is a record or its file. Carried are the model, the method and settings of training, adapter and writing that
    are numbers or choices; all else is named as left out: a record of somebody else's cannot make a project that loads
    or sends anything but the model it names. `options` are those of `project`, and go before the record's.
    `ValueError` when neither they nor the record say a method of ours (a rate that suits one does not suit another),
    or when the run began from random weights.

    >>> run = {"settings": {"model": "tiny-encoder", "learning_rate": 1e-3, "rank": 4, "push_to_hub": True}}
    >>> folder = from_record(run, "classification", Path(tempfile.mkdtemp()) / "reviews")
    carried: model, training.learning_rate, peft.r; left out: push_to_hub
    reviews: 480 rows to train, 60 to validate, 60 to test. Now: cd "reviews" and python train.py

    Taught in README.md, "From notebook to project".
    """
    file = Path(run).resolve() if isinstance(run, (str, Path)) else None
    recorded = _flat((record.load(file) if file else run)["settings"])
    model = recorded.pop("model", None)
    for folder in file.parents[:3] if model and file else ():  # a project's record has its model relative to itself
        if (folder / model / "config.json").exists():
            model = str((folder / model).resolve())
    way = recorded.get("way", recorded.get("method"))
    start = "a random base" if "random base" in str(way) else recorded.pop("start", "pretrained")
    if start != "pretrained":
        raise ValueError(f"the record's run began from {start}; a project begins from a pretrained model.")
    method = options.get("method") or _method(recorded)
    if not method:  # a rate that suits one method does not suit another
        known = f'the record\'s way is "{way}"' if way else "the record does not say how it was trained"
        raise ValueError(f"{known}: pass method=, one of {', '.join(METHODS)}, and a rate that suits it.")
    settings, left_out = _carried(recorded, task, method)
    carried = ", ".join([*(["model"] if model else []), *settings])
    print(f"carried: {carried or 'nothing'}" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    settings |= options.pop("settings", None) or {}
    return project(task, name, **{"model": model, "method": method, **options, "settings": settings})


# ---- Checks --------------------------------------------------------------------------------------------


def _one_of(what, given, known):
    if given not in known:
        near = "".join(f" (closest: {name})" for name in get_close_matches(str(given), known, 1))
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


def _check_model(task, source, path):
    """The kind of the model; raises when that kind does not do the task."""
    import transformers

    from helpers import memory

    env.quiet()
    config = memory.configuration(path)
    kinds = {
        "encoder-decoder": config.is_encoder_decoder,
        "encoder": type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING,
        "decoder": type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    }
    kind = next((name for name, fits in kinds.items() if fits), "model of another kind")
    possible, reason = KINDS[task]
    if kind not in possible:
        raise ValueError(
            f"{source} is {'an' if kind[0] == 'e' else 'a'} {kind} ({config.model_type}), "
            f"and {task} needs a model that is {' or '.join(possible)}. {reason}."
        )
    return kind


def _place_of_model(path, place):
    """The model as config.yaml names it: seen from the project where it can be, so that both can be moved together."""
    name = "model.pretrained_model_name_or_path"
    if not Path(path).is_dir():
        return {name: path}, ""
    try:
        return {name: os.path.relpath(path, place)}, ""
    except ValueError:  # on Windows, on another drive
        moved = f"The model is on another drive, so the project cannot be moved without setting {name}."
        return {name: str(Path(path).resolve())}, moved


def _rows(task, files, columns, labels):
    """The rows of each split with train.py's columns, the names of their labels, and the README's lines on them."""
    if len(files) > 3:
        parts = "pass one, or two (train, test), or three (train, validation, test)"
        raise ValueError(f"{len(files)} files: {parts}. {tables.EACH}")
    rows = _read(files)
    splits, labels, notes = _checked(task, rows if len(rows) > 1 else rows["train"], columns, labels)
    text, label = COLUMNS[task]
    notes += _duplicates(splits, text, label)
    given = {f"{part}": 0 for part in PARTS[1:] if part in splits}  # the others are split off
    if len(given) < 2:
        splits = {**tables.split(splits["train"], label=label, text=text, **given), **{p: splits[p] for p in given}}
    before = len(splits["train"])
    splits = tables.without_overlaps({part: splits[part] for part in PARTS}, text=text)
    dropped = before - len(splits["train"])
    if dropped == before:
        raise ValueError(
            f"no row to train on is left: the texts of all {before} are, but for case and punctuation, in "
            "validation or test too. Pass files that differ, or one file, which is split."
        )
    if dropped:
        notes += [f"Rows to train whose text is, but for case and punctuation, in another part: {dropped}, left out."]
    sizes = [f"* `data/{part}.jsonl`: {len(splits[part])} rows" for part in PARTS]
    read = f"From {', '.join(Path(str(file)).name for file in files)}, which was only read:"
    return splits, labels, [read, "", *sizes, "", *notes]


def _read(files):
    """The rows of each file, or of each split of a data set on the Hub or in a folder."""
    names = {1: PARTS[:1], 2: ("train", "test"), 3: PARTS}[len(files)]
    try:
        return {name: tables.read(file) for name, file in zip(names, files, strict=True)}
    except tables.DataError as error:
        if "has several splits" not in str(error) or len(files) > 1:
            raise
    rows = {}
    for name, part in SPLITS.items():
        with contextlib.suppress(*([] if part == "train" else [tables.DataError])):
            rows[part] = tables.read(files[0], split=name)
    return rows


def _checked(task, rows, columns, labels):
    """The splits after the checks of `helpers.data`, with the columns of train.py, and the names of the labels."""
    text, label = COLUMNS[task]
    try:
        if task == "generation":
            if labels is not None:
                raise ValueError("labels are for classification and tokens: leave them out.")
            rows = tables.to_messages(rows, prompt=columns["prompt"], answer=columns["answer"])
            _refuse_tools(rows)
            return _splits(rows, _with_prompt), None, []
        check = tables.check_tokens if task == "tokens" else tables.check
        if not isinstance(columns[text], str):
            raise ValueError(f"{text} is {columns[text]}, and a project reads one column: join them into one.")
        if task == "classification":
            _refuse_numbers(_first(rows), columns[label])
        words = _are_words(labels, rows, columns[label])
        named = {text: columns[text], label: columns[label], "labels": None if words else labels}
        rows = check(rows, **named, duplicates="ignore")
    except tables.DataError as error:
        options = {"classification": "--text and --label", "tokens": "--tokens and --tags"}
        hint = f" Your columns are named by {options.get(task, '--prompt and --answer')}."
        raise ValueError(f"{error}{hint if 'has no column' in str(error) else ''}") from None
    found = columns[label] if columns[label] in _first(rows).column_names else label  # columns of 0 and 1 become one
    kept = {columns[text]: text, found: label}
    splits = _splits(rows, lambda part: part.select_columns(list(kept)).rename_columns(kept))
    feature = splits["train"].features[label]
    names = getattr(feature, "feature", feature).names  # a row's labels may be a list
    if words:  # the classes are in the order of the numbers
        pairs = ", ".join(f"{number} is {word}" for number, word in zip(names, labels, strict=True))
        return splits, list(labels), [f"Labels: {pairs}."]
    numbers = {number for part in splits.values() for number in part.to_pandas()[label].explode()}
    seen = [name for number, name in enumerate(names) if number in numbers]
    if (unseen := [name for name in names if name not in seen]) and task == "classification":
        raise ValueError(f"no row has the label {', '.join(unseen)}; the data have {', '.join(seen)}.")
    return splits, names, [f"Tags that no row has, so none is learnt: {', '.join(unseen)}."] if unseen else []


def _splits(rows, change):
    return {name: change(part) for name, part in (rows if isinstance(rows, dict) else {"train": rows}).items()}


def _refuse_numbers(rows, column):
    """Raises when the labels are measurements: many numbers, or some that are not whole."""
    values = set(map(str, rows[column])) if column in rows.column_names else {"a word"}
    number = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.IGNORECASE)
    if len(values) > 10 and all(map(number.fullmatch, values)):
        broken = sorted(value for value in values if float(value) % 1)
        if broken or len(values) > max(20, len(rows) / 4):
            raise ValueError(
                f'column "{column}" holds {len(values)} different numbers, such as {(broken or sorted(values))[0]}: '
                "that is a regression, and a project gives classes. Put the numbers into a few classes; or train "
                'AutoModelForSequenceClassification with num_labels=1 and problem_type="regression" in a script of '
                "your own, with the numbers, scaled to a mean of 0 and a spread of 1, as labels."
            )


def _first(rows):
    return rows["train"] if isinstance(rows, dict) else rows


def _are_words(labels, rows, column):
    """Whether the labels are words for numbers: the data have as many whole numbers as there are words."""
    values = _first(rows)[column][:] if column in _first(rows).column_names else []
    found = [{str(value).isdecimal() for value in side} for side in (values, labels or [])]
    return found == [{True}, {False}] and len({*values}) == len(labels)


def _refuse_tools(rows):
    """Raises for conversations that call tools, which the project's train.py does not write."""
    problems, what = tables.Problems(), "calls tools, or is told of some, which a project's train.py does not write"
    for name, part in rows.items() if isinstance(rows, dict) else [(getattr(rows, "file_name", "the data"), rows)]:
        for number, row in enumerate(part if part.features != tables.MESSAGES else (), 1):
            if row.get("tools") or any("tool_calls" in message for message in row["messages"]):
                problems.add(name, f"{what}; text.tokenize_chat does. Leave these rows out.", number)
    problems.raise_all()


def _with_prompt(rows):
    """With a column of all messages but the answer: rows with an equal prompt belong together."""
    prompts = ["\n".join(message["content"] or "" for message in messages[:-1]) for messages in rows["messages"]]
    return rows.select_columns(["messages"]).add_column("prompt", prompts)


def _duplicates(splits, text, label):
    """Lines that count the rows that are there twice, and the texts that have two labels; they are kept."""
    rows = (row for part in splits.values() for row in _each(part.select_columns([text, label])))
    pairs = Counter((json.dumps(row[text], ensure_ascii=False), json.dumps(row[label])) for row in rows)
    texts, again = Counter(text for text, _ in pairs), pairs.total() - len(pairs)
    several = [text for text, count in texts.items() if count > 1]
    lines = [f"Rows that are there already, with the same text and the same answer: {again}, kept."] if again else []
    if several:
        lines += [f"Texts with more than one answer: {len(several)}, kept, such as {several[0][:80]}."]
    return lines


def _each(rows):
    """The rows one after the other, read a thousand at a time: a tenth of the time of reading each by itself."""
    for batch in rows.iter(1000):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _as_lines(task, rows, names):
    """Rows as train.py reads them, one JSON object a line, with words for labels."""
    label = COLUMNS[task][1]
    for row in _each(rows.select_columns(["messages"]) if task == "generation" else rows):
        if names:
            numbers = row[label]
            row[label] = [names[one] for one in numbers] if isinstance(numbers, list) else names[numbers]
        yield json.dumps(row, ensure_ascii=False)


# ---- Settings ------------------------------------------------------------------------------------------


def _script(file):
    """The names of a project's script, which imports the project's own files as when it is run."""
    others = {path.stem: sys.modules.pop(path.stem, None) for path in file.parent.glob("*.py")}
    sys.path.insert(0, str(file.parent))
    try:
        return SimpleNamespace(**runpy.run_path(str(file)))
    finally:
        sys.path.remove(str(file.parent))
        sys.modules |= {name: module for name, module in others.items() if module}
        for name in {name for name, module in others.items() if not module} & set(sys.modules):
            del sys.modules[name]


class _Untrainable(ValueError):
    """The libraries cannot train this model by this method."""


def _configured(folder, source, method, fixed, settings):
    """Writes config.yaml for the method; returns it as read, and the README's lines on memory and on rows left out."""
    template = (folder / "config.yaml").read_text(encoding="utf-8")
    train = _script(folder / "train.py")

    def configure(method):
        sections = TEMPLATES / "methods" / f"{method}.yaml"
        text = template + (sections.read_text(encoding="utf-8") if method != "full" else "")
        return _try(folder, train, source, method, text, fixed, settings)

    def works(method):
        with contextlib.suppress(ValueError):
            return bool(configure(method))

    try:
        return configure(method)
    except _Untrainable as error:
        possible = ", ".join(other for other in METHODS if other != method and works(other)) or "none"
        raise ValueError(f"{source} cannot be trained by {METHODS[method]} ({error}). Possible: {possible}.") from error


def _try(folder, train, source, method, text, fixed, settings):
    """Fills in config.yaml, and has the project's own code read it, its rows, and encode these."""
    _write(folder / "config.yaml", _with_settings(text, fixed))
    config = train.read_config()
    sizes = {part: sum(1 for _ in (folder / config["data"][part]).open("rb")) for part in PARTS}
    chosen, why = _recommended(config, train, source, method, sizes["train"])
    text = _with_settings(_with_settings(text, fixed), chosen, why)
    _write(folder / "config.yaml", _with_settings(text, settings, dict.fromkeys(settings, "as given")))
    config = train.read_config()
    needs = ("fp16", "bf16", "tf32", "fp16_full_eval", "bf16_full_eval", "deepspeed", "fsdp")  # another machine may do
    here = {name: value for name, value in config["training"].items() if name not in needs}
    train.training_arguments({**config, "training": here})
    train.peft_config(config)
    tokenizer, left_out, longest = train.load_tokenizer(config), [], 0
    for part in PARTS:
        rows = _longest(train.read_part(part, config))
        with contextlib.redirect_stdout(io.StringIO()):
            examples = train.encode(rows, tokenizer, config)
        if not examples:
            raise ValueError(f"all rows of {part} are longer than data.max_length={config['data']['max_length']}.")
        if len(examples) < len(rows):
            left_out.append(f"Longer than max_length, and left out of {part} by train.py: {len(rows) - len(examples)}.")
        longest = longest or max(examples["length"])
    memory = _memory(train, config, longest)
    if memory.settings["optim"] != config["training"]["optim"]:
        left_out.append(f"The memory of {config['training']['optim']} is unknown: below is that of adamw_torch_fused.")
    return config, memory, left_out


def _recommended(config, train, source, method, rows):
    """The settings to begin with, and why they are so; `rows` is the number of rows to train on."""
    labels = config["data"].get("labels") or []
    tags = any(str(label).startswith("B-") for label in labels)
    found = env.recommend(source, method, rows, len(labels) or None, tags)
    chosen = {f"training.{setting}": found[name] for name, setting in RECOMMENDED.items()}
    of_rate, *of_epochs = found["why"].split("; ")
    why = dict.fromkeys(chosen, "the rule of env.recommend")
    why |= {"training.learning_rate": f"{of_rate}; train.py --find tries others"}
    why |= {"training.num_train_epochs": "; ".join(of_epochs)} if of_epochs else {}
    if rows > MANY:
        chosen["training.train_sampling_strategy"] = "random"
        why["training.train_sampling_strategy"] = "as grouping so many rows by length takes long"
    places = train.longest(config, train.load_tokenizer({**config, "data": {}}))
    return chosen | {"data.max_length": min(config["data"]["max_length"], places)}, why


def _longest(rows):
    """The rows with the most letters, where there are many: the longest in tokens are among them."""
    if len(rows) <= MANY:
        return rows
    letters = rows.to_pandas().astype(str).sum(axis=1).str.len()
    return rows.select(letters.nlargest(MANY).index)


def _with_settings(text, settings, why=()):
    """config.yaml with other values, and `why` as their comments; other comments stay. A new name goes to the end."""
    sections = re.split(r"(?m)^(?=\w+:)", text)
    for name, value in settings.items():
        section, _, key = name.partition(".")
        numbers = [number for number, part in enumerate(sections) if part.startswith(f"{section}:")]
        if not numbers or not key:
            known = ", ".join(part.partition(":")[0] for part in sections[1:])
            raise ValueError(f"{name} is no setting: write section.name=value, with a section of {known}.")
        line = f"  {key}: {json.dumps(value, ensure_ascii=False)}"  # JSON is YAML, with all texts in quotes
        why_ = f"  # {why[name]}" if name in why else ""
        part, found = re.subn(
            rf"(?m)^  {re.escape(key)}:.*?(  #.*)?$",
            lambda old, line=line, why_=why_: line + (why_ or old[1] or ""),
            sections[numbers[0]],
        )
        sections[numbers[0]] = part if found else f"{part.rstrip()}\n{line}\n{part[len(part.rstrip()) + 1 :]}"
    return "".join(sections)


def _memory(train, config, longest):
    """The expected memory of a step; `_Untrainable` when two steps with shapes instead of numbers cannot be done."""
    from helpers import memory

    training, problems = config["training"], []
    for device in ("cuda", "cpu"):  # the imitation of CUDA may fail where the model does not
        try:
            return memory.predict(
                train.place(config),
                task=train.task_type(config),
                batch=training["per_device_train_batch_size"],
                length=longest,
                peft=train.peft_config(config),
                quantization_config=train.quantization_config(config),
                dtype="bfloat16" if "peft" in config else "float32",
                autocast="bfloat16",
                activation_checkpointing=bool(training.get("activation_checkpointing")),
                optim=training["optim"] if training["optim"] in memory.OPTIMIZERS else "adamw_torch_fused",
                device=device,
            )
        except Exception as error:  # whatever the libraries raise when a method does not fit a model
            problems.append(error)
    raise _Untrainable(str(problems[0]).splitlines()[0].rstrip(".")) from problems[0]


# ---- Records -------------------------------------------------------------------------------------------


def _flat(settings):
    """The settings of a record, with a project's own sections as dotted names."""
    if not isinstance(settings.get("training"), dict):
        return {key: value for key, value in settings.items() if value is not None}
    sections = {name: values for name, values in settings.items() if isinstance(values, dict) and name != "data"}
    flat = {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}
    return {"model": flat.pop("model.pretrained_model_name_or_path", None), **flat}


def _method(recorded):
    """The method of a run, if its settings say it; what said it is taken out of them."""
    four_bit = recorded.pop("four_bit", False) or recorded.get("quantization.load_in_4bit", False)
    lora = "qlora" if four_bit else "lora"
    way = recorded.pop("method", None) or recorded.pop("way", None)
    if way:
        if str(way).lower() in VARIANTS:
            recorded[VARIANTS[way.lower()]] = True
            return "lora"
        return str(way).lower() if str(way).lower() in METHODS else None
    kind = recorded.pop("peft.peft_type", None)
    if kind:
        return {"LORA": lora, "PREFIX_TUNING": "prefix", "IA3": "ia3"}.get(kind)
    if four_bit or {"r", "rank", "lora_alpha", "alpha"} & set(recorded):
        return lora
    return "full" if "training.learning_rate" in recorded else None


def _carried(recorded, task, method):
    """The settings that a project takes from a record, by their names in config.yaml; and the names of the others."""
    sections = {**CARRIED, "peft": CARRIED["peft"].get(method, "")}
    if task != "generation":
        del sections["generation"]
    if method != "qlora":
        del sections["quantization"]
    allowed = {name: f"{section}.{name}" for section, names in sections.items() for name in names.split()}
    settings, left_out = {}, []
    for key, value in recorded.items():
        name = allowed.get(RENAMED.get(key, key.rpartition(".")[2]))
        choice = value is None or isinstance(value, (bool, int, float)) or re.fullmatch(r"\w+", str(value))
        if name and choice and (name == key or "." not in key):
            settings[name] = value
        else:
            left_out.append(key)
    return settings, left_out


# ---- Writing -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _new_folder(place):
    """A folder beside the project's place, which becomes it at the end: all of it or nothing."""
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's own is for one user only
        os.rename(folder, place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(file, *lines):
    file.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8", newline="\n")


def _packages(task, method, config):
    trackers = config["training"].get("report_to") or []
    trackers = [trackers] if isinstance(trackers, str) else trackers
    needed = [NEEDED[name] for name in (task, method) if name in NEEDED]
    return [*PACKAGES, *needed, *(name for name in trackers if name in ("tensorboard", "wandb", "trackio"))]


def _pinned(package):
    try:
        return f"{package}=={version(package).partition('+')[0]}"
    except PackageNotFoundError:  # a tracker that is not installed here: any version
        return package


# ---- The command ---------------------------------------------------------------------------------------


def _setting(text):
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write section.name=value, such as training.seed=1")
    with contextlib.suppress(ValueError):
        return name, json.loads(value)  # it reads 2e-5 as a number, as train.py does
    return name, yaml.safe_load(value)


def main(arguments=None):
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a console may lack a letter of a name
    parser = argparse.ArgumentParser(prog="python -m helpers.new", description="Makes a project of your own.")
    parser.add_argument("task", choices=list(KINDS))
    parser.add_argument("name", help="the folder to make")
    parser.add_argument("--model", help="a name in data/models, a folder or a Hub id")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="a file; or train, test; or train, validation, test")
    parser.add_argument("--method", choices=list(METHODS), help="left out: full for an encoder, else lora")
    parser.add_argument("--labels", nargs="+", help="in the order of their numbers; left out: read from the data")
    for option, task in {"text": 0, "label": 0, "tokens": 1, "tags": 1}.items():
        several = dict(nargs="+", help="column, or columns of 0 and 1, for classification") if option == "label" else {}
        parser.add_argument(
            f"--{option}", **{"default": option, "help": f"column, for {list(KINDS)[task]} (%(default)s)", **several}
        )
    parser.add_argument("--prompt", help='column, or several as in "{passage} {question}", for generation')
    parser.add_argument("--answer", help="column, for generation")
    parser.add_argument("--set", action="append", type=_setting, default=[], metavar="SECTION.NAME=VALUE")
    parser.add_argument("--panel", action="store_true", help="with a notebook that needs helpers: memory and tuning")
    options = vars(parser.parse_args(arguments))
    options["settings"] = dict(options.pop("set"))
    if len(options["label"]) == 1:
        [options["label"]] = options["label"]
    try:
        project(options.pop("task"), options.pop("name"), **options)
    except (ValueError, OSError) as error:
        message = re.sub(r"\b(labels|prompt|answer)=(?=[\"\[])", r"--\1 ", f"error: {error}")
        sys.exit(re.sub(r"\b(labels|prompt|answer)=", r"--\1", message))  # as options of this command


if __name__ == "__main__":
    main()
