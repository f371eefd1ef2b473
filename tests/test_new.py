"""`helpers.new`: what it refuses, what every setting does, that it is in step with the notebooks, and its trackers."""

import ast
import copy
import csv
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from datasets import Dataset, DatasetDict
from new_projects import QUICK, environment, load, small_file

from helpers import env, new, record, text
from notebooks import NOTEBOOKS, tagged

README = (env.REPOSITORY / "README.md").read_text(encoding="utf-8")
MINE = {"data": "mine.csv", "text": "comment", "label": "stars"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """An empty folder with a file of the reader's: other column names, and numbers for labels."""
    env.quiet()
    monkeypatch.chdir(tmp_path)
    with Path("mine.csv").open("w", newline="") as file:
        rows = [(f"It was {word} the {n}th time, and I say so.", n % 3) for n in range(30) for word in ("fine", "bad")]
        csv.writer(file).writerows([("comment", "stars"), *rows])
        numbers = [(text, n + 0.5) for n, (text, _) in enumerate(rows)]
    with Path("numbers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("comment", "stars"), *numbers])
    yield
    for name in ("train", "predict", "scoring", "verdict", "report"):
        sys.modules.pop(name, None)


def made(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


NO_SYSTEM = (  # as Gemma's
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
)


# ---- What is refused -----------------------------------------------------------------------------------------------

REFUSED = [
    (("clasification", "new"), {}, r'task "clasification" is not one of .* \(closest: classification\)'),
    (("classification", "new"), {"method": "qlra"}, r'method "qlra" is not one of .* \(closest: qlora\)'),
    (("classification", "mine.csv"), {}, "mine.csv is there already"),
    (("classification", "no/new"), {}, "there is no folder .*no to make new in"),
    (("classification", "new"), {"model": "tiny-encodr"}, r"closest: tiny-encoder"),
    (("classification", "new"), {"model": "org/not-in-the-cache"}, "org/not-in-the-cache"),
    (("generation", "new"), {"model": "tiny-encoder"}, r"tiny-encoder is an encoder \(modernbert\).*does not write"),
    (("tokens", "new"), {"model": "tiny-decoder"}, r"tiny-decoder is a decoder \(llama\).*to the right"),
    (("classification", "new"), {"model": "tiny-seq2seq"}, r"tiny-seq2seq is an encoder-decoder \(t5\).*generation"),
    (("classification", "new"), {"method": "prefix"}, r"by prefix tuning .* Possible: full, lora, qlora, ia3\."),
    (("classification", "new"), {"data": "mine.cvs"}, r"no such file \(closest in its folder: mine.csv\)"),
    (("classification", "new"), {"data": ["mine.csv"] * 4}, "4 files: pass one.*If each file is one text"),
    (
        ("classification", "new"),
        {"data": "mine.csv"},
        '(?s)has no column "text", it has comment, stars.*--text and --label',
    ),
    (("classification", "new"), MINE | {"labels": ["0", "1"]}, "is not one of 0, 1"),
    (
        ("classification", "new"),
        MINE | {"labels": ["0", "1", "2", "3"]},
        "no row has the label 3; the data have 0, 1, 2",
    ),
    (("generation", "new"), {"data": "mine.csv"}, 'has no column "messages"'),
    (("generation", "new"), {"labels": ["a"]}, "labels are for classification and tokens"),
    (("classification", "new"), {"settings": {"trainng.seed": 1}}, "trainng.seed is no setting"),
    (
        ("classification", "new"),
        {"settings": {"training.sed": 1}},
        "training: sed is not known; the nearest name is seed",
    ),
    (("classification", "new"), {"settings": {"training.evaluation_strategy": "no"}}, "is now eval_strategy"),
    (
        ("classification", "new"),
        {"settings": {"data.max_length": 9000}},
        "data: max_length is 9000, and tiny-encoder has places for 512",
    ),
    (
        ("classification", "new"),
        {"settings": {"training.num_train_epochs": "abc"}},
        "num_train_epochs is 'abc', and should be like 3",
    ),
    (
        ("classification", "new"),
        {"settings": {"training.eval_strategy": "epochs"}},
        "training: epochs is not a valid IntervalStrategy",
    ),
    (
        ("classification", "new"),
        {"settings": {"training.metric_for_best_model": "f1"}},
        "metric_for_best_model is f1, and the evaluation gives loss, accuracy, f1_macro",
    ),
    (
        ("generation", "new"),
        {"settings": {"training.greater_is_better": True}},
        "with this greater_is_better the worst loss is the best one",
    ),
    (
        ("classification", "new"),
        {"settings": {"model.trust_remote_code": True}},
        "model: trust_remote_code is refused, as it runs whatever code comes with a model",
    ),
    (
        ("generation", "new"),
        {"model": "tiny-seq2seq", "settings": {"data.chat_template": "x"}},
        "data: chat_template is for decoders",
    ),
    (
        ("classification", "new"),
        MINE | {"data": "numbers.csv"},
        'column "stars" holds 60 different numbers, such as 0.5: that is a regression.*num_labels=1',
    ),
    (
        ("generation", "new"),
        {"settings": {"data.chat_template": NO_SYSTEM}},
        r"refuses a conversation of system, user.* \(System role not supported\).* It is so in \d+ rows: ",
    ),
    (("classification", "new"), MINE | {"data": ["mine.csv", "mine.csv"]}, "no row to train on is left: the texts"),
    (("classification", "new"), MINE | {"text": ["comment", "stars"]}, "a project reads one column: join them"),
]


@pytest.mark.parametrize(("given", "options", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_cannot_work_is_refused_and_nothing_is_written(given, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        new.project(*given, **options)
    assert made() == ["mine.csv", "numbers.csv"]


def test_the_command_names_its_options():
    with pytest.raises(SystemExit, match=r"pass --labels \[\.\.\.\]"):
        new.main(
            ["classification", "new", "--data", "mine.csv", "--text", "comment", "--label", "stars", "--labels", "0"]
        )


def test_the_command_says_the_error_in_one_line():
    with pytest.raises(SystemExit, match=r"^error: mine\.csv is there already"):
        new.main(["classification", "mine.csv"])


@pytest.mark.parametrize("moment", [1, 3, 4, "rename"])
def test_a_set_up_that_is_interrupted_leaves_nothing(moment, monkeypatch):
    calls, write_text = [], Path.write_text

    def interrupted(*given, **named):
        calls.append(given)
        if moment in ("rename", len(calls)):
            raise KeyboardInterrupt
        return write_text(*given, **named)

    monkeypatch.setattr(*((os, "rename") if moment == "rename" else (Path, "write_text")), interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.project("classification", "new", **MINE)
    assert calls
    assert made() == ["mine.csv", "numbers.csv"]


# ---- Data of another shape -----------------------------------------------------------------------------------------


def test_numbers_become_words_and_the_readers_file_is_only_read(capsys):
    before = Path("mine.csv").read_bytes()
    words = ["poor", "fair", "good"]
    folder = new.project("classification", "my stars", labels=words, **MINE)
    assert 'cd "my stars"' in capsys.readouterr().out
    assert Path("mine.csv").read_bytes() == before
    rows = {
        p: [json.loads(line) for line in (folder / f"data/{p}.jsonl").read_text().splitlines()]
        for p in ("train", "test")
    }
    assert {row["label"] for row in rows["train"]} == {row["label"] for row in rows["test"]} == set(words)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["labels"] == words
    assert "helpers" not in (folder / "train.ipynb").read_text() + (folder / "train.py").read_text()


def test_words_go_to_numbers_in_the_order_of_the_numbers():
    text = Path("mine.csv").read_text()
    Path("mine.csv").write_text(re.sub(r"(?m),(\d)$", lambda found: f",{10 - 3 * int(found[1])}", text))  # 10, 7 and 4
    folder = new.project("classification", "new", labels=["poor", "fair", "good"], **MINE)
    rows = [json.loads(line) for line in (folder / "data/train.jsonl").read_text().splitlines()]
    place = {row["text"]: int(re.search(r"the (\d+)th", row["text"])[1]) % 3 for row in rows}
    assert all(row["label"] == ["good", "fair", "poor"][place[row["text"]]] for row in rows)
    assert "4 is poor, 7 is fair, 10 is good" in (folder / "README.md").read_text()


def test_a_label_that_looks_like_a_number_stays_a_text():
    rows = [{"text": f"The {n}th.", "label": ("1e3", "2e5", "3e1")[n % 3]} for n in range(60)]
    Path("e.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = load(new.project("classification", "new", data="e.jsonl"))
    assert sorted(train.read_config()["data"]["labels"]) == ["1e3", "2e5", "3e1"]


def test_rows_that_are_there_twice_and_texts_with_two_labels_are_told():
    told = (new.project("classification", "clean", **MINE) / "README.md").read_text()
    assert "there already" not in told
    assert "left out" not in told
    lines = Path("mine.csv").read_text().splitlines()
    Path("mine.csv").write_text("\n".join([*lines, *lines[1:4], re.sub("0$", "1", lines[1])]))
    told = (new.project("classification", "new", **MINE) / "README.md").read_text()
    assert "there already, with the same text and the same answer: 3, kept" in told
    assert 'Texts with more than one answer: 1, kept, such as "It was fine the 0th' in told


def test_the_splits_of_a_folder_keep_their_names():
    parts = {
        name: [{"text": f"{name} {n}", "label": "ab"[n % 2]} for n in range(12)] for name in ("train", "dev", "test")
    }
    DatasetDict({name: Dataset.from_list(rows) for name, rows in parts.items()}).save_to_disk("parts")
    folder = new.project("classification", "new", data="parts")
    lines = (folder / "data" / "validation.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == parts["dev"]


def test_rows_to_train_that_are_in_another_part_are_left_out_and_told():
    lines = Path("mine.csv").read_text().splitlines()
    Path("test.csv").write_text("\n".join([lines[0], *(line.upper() for line in lines[1:7])]))
    folder = new.project("classification", "new", **MINE | {"data": ["mine.csv", "test.csv"]})
    told = (folder / "README.md").read_text()
    left_out = int(re.search(r"in another part: (\d+), left out", told)[1])
    sizes = [len((folder / f"data/{part}.jsonl").read_text().splitlines()) for part in ("train", "validation", "test")]
    assert sizes[2] == 6
    assert 0 < left_out <= 6
    assert sum(sizes) + left_out == 66


def test_a_model_on_another_drive_is_named_by_its_whole_path(monkeypatch, capsys):
    usual = os.path.relpath

    def relpath(path, start=os.curdir):  # as on Windows
        if Path(start).name == "new":
            raise ValueError("path is on mount 'C:', start on mount 'D:'")
        return usual(path, start)

    monkeypatch.setattr(os.path, "relpath", relpath)
    train = load(new.project("classification", "new", **MINE))
    assert "on another drive, so the project cannot be moved without" in capsys.readouterr().out
    assert train.read_config()["model"]["pretrained_model_name_or_path"] == env.model_path("tiny-encoder")


def test_where_each_setting_came_from_is_said():
    folder = new.project("classification", "new", **MINE, method="full", settings={"training.seed": 3})
    rows = len((folder / "data" / "train.jsonl").read_text().splitlines())
    text, rule = (folder / "config.yaml").read_text(), env.recommend("tiny-encoder", "full", rows, 3)
    values = yaml.safe_load(text)["training"]
    assert [values[name] for name in new.RECOMMENDED.values()] == [rule[name] for name in new.RECOMMENDED]
    assert re.search(r"  learning_rate: .*  # rate .*: width \d+, full; train.py --find tries others", text)
    assert re.search(r"  num_train_epochs: \d+  # .* rows and 3 classes need", text)
    assert "  seed: 3  # as given\n" in text


def test_rows_may_have_several_labels():
    folder = new.project("classification", "new", **MINE, method="full", settings=QUICK)
    train = load(folder)
    for part in train.PARTS:
        file = folder / "data" / f"{part}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [row | {"label": ["0", "1"] if "bad" in row["text"] else []} for row in rows]
        file.write_text("\n".join(map(json.dumps, rows)))
    changed = {"data.multi_label": True, "training.metric_for_best_model": "f1_micro", "training.max_steps": 2}
    changed |= {"data.class_weights": True}
    text = new._with_settings((folder / "config.yaml").read_text(), changed)
    (folder / "config.yaml").write_text(text)
    train.main()
    run = record.load(folder / "runs" / "main.json")
    assert {"test_f1_micro", "test_f1_macro", "test_accuracy"} <= set(run["metrics"])
    assert run["baselines"]["test"]["word counts"]["score"] == 1
    predict = load(folder, "predict")
    said = predict.answers(*[predict.load("config.yaml")[i] for i in (2, 1, 0)], [{"text": "It was bad."}], 2)
    assert isinstance(said[0]["predicted"], list)
    assert set(said[0]["probabilities"]) == {"0", "1", "2"}
    (folder / "data" / "train.jsonl").write_text('{"text": "Good.", "label": "0"}')
    with pytest.raises(train.ConfigError, match=r"line 1 has the label 0, and needs a list of labels"):
        train.read_part("train", train.read_config())


@pytest.mark.parametrize("terminal", [True, False])
def test_answers_can_be_printed_on_any_console(terminal, kinds, monkeypatch):
    monkeypatch.setitem(sys.modules, "train", kinds("encoder"))
    predict, written = load(kinds("encoder").HERE, "predict"), io.BytesIO()
    console = io.TextIOWrapper(written, encoding="cp1252", write_through=True)
    console.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", console)
    predict.printed([json.dumps({"text": "love it 😍"}, ensure_ascii=False)])
    assert json.loads(written.getvalue().decode("ascii" if terminal else "utf-8")) == {"text": "love it 😍"}


# ---- Settings ------------------------------------------------------------------------------------------------------

KINDS = {  # kind of project: how it is made; together they have every line of the template
    "encoder": ("classification", {"method": "lora", "data": "mine.csv", "text": "comment", "label": "stars"}),
    "tagger": ("tokens", {"method": "ia3"}),
    "decoder": ("generation", {"method": "qlora", "model": "tiny-decoder"}),
    "prefix": ("generation", {"method": "prefix", "model": "tiny-decoder"}),
    "seq2seq": ("generation", {"method": "full", "model": "tiny-seq2seq"}),
}
METHOD_FILES = {"full": [], **{path.stem: [path] for path in (new.TEMPLATES / "methods").iterdir()}}
OTHER = {  # another value, where adding one or turning round does not do
    "model.pretrained_model_name_or_path": "../other",
    "data.labels": ["2", "1", "0"],
    "data.stride": 4,
    "data.written": 3,
    "data.chat_template": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "training.output_dir": "runs/other",
    "training.lr_scheduler_type": "cosine",
    "training.optim": "adafactor",
    "training.train_sampling_strategy": "random",
    "training.eval_strategy": "no",
    "training.save_strategy": "no",
    "training.metric_for_best_model": "loss",
    "training.early_stopping_patience": 3,
    "training.activation_checkpointing": True,
    "training.report_to": "tensorboard",
    "training.load_best_model_at_end": False,
    "peft.peft_type": "RANDLORA",
    "peft.target_modules": ["attn.Wqkv", "q_proj", "mlp.Wo"],
    "peft.feedforward_modules": [],
    "quantization.bnb_4bit_quant_type": "fp4",
    "quantization.load_in_4bit": False,
    "quantization.llm_int8_skip_modules": ["lm_head", "down_proj"],
}
REFUSED_BY_THE_LIBRARY = {"peft.peft_type": TypeError}  # another type has other names


def fields():
    """Every line of config.yaml for every kind, once."""
    seen = set()
    for kind, (task, options) in KINDS.items():
        files = [new.TEMPLATES / task / "config.yaml", *METHOD_FILES[options["method"]]]
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        for section, values in yaml.safe_load(text).items():
            for key in values:
                name = f"{section}.{key}"
                if task == "generation" and name == "peft.modules_to_save":
                    continue  # nothing is new in a model that writes
                if (name, section == "peft" and kind) not in seen:
                    seen.add((name, section == "peft" and kind))
                    yield kind, name


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """The project of each kind, with its module train, made once."""
    folder, found = tmp_path_factory.mktemp("kinds"), {}
    (folder / "other").mkdir()

    def make(kind):
        if kind not in found:
            task, options = KINDS[kind]
            options = options | ({"data": Path.cwd() / "mine.csv"} if "data" in options else {})
            found[kind] = load(new.project(task, folder / kind, **options))
            for part in ("train", "validation", "test"):
                rows = (folder / kind / f"data/{part}.jsonl").read_text().splitlines()
                (folder / kind / "data" / f"{part}2.jsonl").write_text("\n".join(rows[1:]))
        return found[kind]

    return make


class Recorder:
    """Stands for a model: keeps what it is asked to generate with."""

    device = "cpu"

    def __init__(self, generation_config):
        self.generation_config = generation_config

    def eval(self):
        return self

    def generate(self, input_ids, generation_config, **_):
        self.used = generation_config
        return input_ids


def built(train, config, section, key):
    """What the project builds from a section, as something to compare."""
    if section == "model":
        return train.place(config)
    if key == "early_stopping_patience" or section == "data":
        tokenizer = train.load_tokenizer(config)
        rows = {part: train.read_rows(config["data"][part]) for part in train.PARTS}
        rows = {part: some.select(range(min(20, len(some)))) for part, some in rows.items()}
        if key == "written":
            return {part: len(some) for part, some in train.to_write(rows, config).items()}
        if key == "multi_label":
            return train.load_model(config).config.problem_type
        examples = {part: train.encode(rows[part], tokenizer, config) for part in train.PARTS}
        if key == "class_weights":
            arguments, model = train.training_arguments(config), train.load_model(config)
            return type(train.make_trainer(config, arguments, model, tokenizer, examples)).__name__
        if section == "data":
            return [[one.to_list() for one in given.values()] for given in (rows, examples)]
        arguments, model = train.training_arguments(config), train.load_model(config)
        trainer = train.make_trainer(config, arguments, model, tokenizer, examples)
        return [type(one).__name__ for one in trainer.callback_handler.callbacks]
    if section == "training":
        return getattr(train.training_arguments(config), key)
    if section == "generation":
        from transformers import GenerationConfig

        model = Recorder(GenerationConfig())
        train.write(model, train.load_tokenizer(config), config, [[{"role": "user", "content": "Hi"}]])
        return model.used.to_dict()
    model = train.load_model(config)
    if section == "peft":
        return model.peft_config["default"].to_dict(), sorted(
            name for name, one in model.named_parameters() if one.requires_grad
        )
    return model.config.quantization_config.to_dict(), sorted({type(one).__name__ for one in model.modules()})


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if value >= 1 else value + 0.25
    return value[1:]


@pytest.mark.parametrize(("kind", "name"), fields())
def test_every_setting_of_the_template_does_something(kind, name, kinds):
    train = kinds(kind)
    config = train.read_config()
    section, _, key = name.partition(".")
    if key == "stride":
        config["data"]["max_length"] = 12  # else no text is too long
    before = built(train, config, section, key)
    other = copy.deepcopy(config)
    value = other[section][key]
    if name == "data.max_length":
        value = 10
    elif name.startswith("data.") and str(value).endswith(".jsonl"):
        value = value.replace(".jsonl", "2.jsonl")
    elif name == "peft.modules_to_save":
        value = []
    else:
        value = OTHER[name] if name in OTHER else changed(value)
    if name == "peft.target_modules":
        layers = [layer for layer, _ in train.network(config).named_modules()]
        value = [one for one in value if any(layer.endswith(f".{one}") for layer in layers)]
    other[section][key] = value
    if name in ("training.eval_strategy", "training.save_strategy"):
        other["training"]["load_best_model_at_end"] = False  # which needs both
    if name in REFUSED_BY_THE_LIBRARY:
        with pytest.raises(REFUSED_BY_THE_LIBRARY[name]):
            built(train, other, section, key)
    else:
        assert built(train, other, section, key) != before


OLD = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "group_by_length": "train_sampling_strategy",
    "gradient_checkpointing": "activation_checkpointing",
    "no_cuda": "use_cpu",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "gone",
    "save_safetensors": "gone",
    "tokenizer": "processing_class",
    "as_target_tokenizer": "text_target",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
}
WRONG = [
    *[("training", old, f"training: {old} is now {current}") for old, current in OLD.items()],
    ("training", "lr", "training: lr is now learning_rate"),
    ("model", "torch_dtype", "model: torch_dtype is now dtype"),
    ("model", "load_in_4bit", "model: load_in_4bit is now load_in_4bit in the section quantization"),
    ("model", "revison", "model: revison is not known; the nearest name is revision"),
    ("data", "max_len", "data: max_len is not known; the nearest name is max_length"),
    ("generation", "max_new_token", "the nearest name is max_new_tokens"),
    ("peft", "lora_alfa", "the nearest name is lora_alpha"),
    ("quantization", "load_in_4bits", "the nearest name is load_in_4bit"),
    (None, "peft_config", "sections: peft_config is now peft"),
    (None, "trainng", "sections: trainng is not known; the nearest name is training"),
]


@pytest.mark.parametrize(("section", "name", "message"), WRONG, ids=[name for _, name, _ in WRONG])
def test_an_old_or_unknown_name_is_an_error_with_the_current_one(section, name, message, kinds):
    train = kinds("decoder")
    config = yaml.safe_load((train.HERE / "config.yaml").read_text())
    (config[section] if section else config)[name] = {} if section is None else 1
    (train.HERE / "wrong.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(train.ConfigError, match=re.escape(message)):
        train.read_config("wrong.yaml")


def test_a_setting_of_the_command_is_read_as_in_the_file():
    given = {"a.b=2e-5": 2e-5, "a.b=true": True, "a.b=cosine": "cosine", "a.b=[k, v]": ["k", "v"], "a.b=": None}
    assert {text: new._setting(text)[1] for text in given} == given


def test_a_rate_may_be_written_as_in_python(kinds):
    train = kinds("encoder")
    text = re.sub("learning_rate: .*", "learning_rate: 2e-5", (train.HERE / "config.yaml").read_text())
    (train.HERE / "rate.yaml").write_text(text)
    assert train.training_arguments(train.read_config("rate.yaml")).learning_rate == 2e-5


@pytest.mark.parametrize("kind", ["encoder", "tagger", "seq2seq", "decoder"])
def test_a_step_in_small_batches_is_the_step_of_the_large_one(kind, kinds):
    train = kinds(kind)
    config = train.read_config()
    config = {section: config[section] for section in config if section not in ("peft", "quantization")}
    tokenizer, rows = train.load_tokenizer(config), train.read_rows("data/train.jsonl")
    examples = train.encode(rows, tokenizer, config).to_list()[:16]
    if kind in ("tagger", "seq2seq"):  # a mean for each small batch: equal when all have as many labels
        for example in examples:
            counted = [i for i, label in enumerate(example["labels"]) if label != -100][:2]
            example["labels"] = [label if i in counted else -100 for i, label in enumerate(example["labels"])]

    def step(size, together):
        changes = {name.removeprefix("training."): value for name, value in QUICK.items()}
        changes |= {"max_steps": 1, "save_strategy": "no", "early_stopping_patience": None}
        changes |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": together}
        asked = config | {"training": config["training"] | changes}
        parts = dict.fromkeys(("train", "validation"), Dataset.from_list(examples))
        trainer = train.make_trainer(asked, train.training_arguments(asked), train.load_model(asked), tokenizer, parts)
        trainer.train()
        return [trainer.state.log_history[0][name] for name in ("loss", "grad_norm")]

    assert step(4, 4) == pytest.approx(step(16, 1), rel=1e-4)


# ---- From a record -------------------------------------------------------------------------------------------------


def test_a_run_of_a_notebook_is_carried_on(capsys):
    run = next((env.DATA / "results" / "05_qlora" / "tiny-decoder").glob("parts-QLoRA-*.json"))
    folder = new.from_record(run, "generation", "mine")
    wanted = record.load(run)["settings"]
    assert "parts" in capsys.readouterr().out.partition("left out: ")[2]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["training"]["learning_rate"] == wanted["learning_rate"]
    assert config["training"]["seed"] == wanted["seed"]
    assert config["quantization"]["load_in_4bit"]


def test_a_run_of_the_panel_is_carried_on():
    run = {"settings": {"learning_rate": 0.003, "rank": 4, "alpha": 32, "num_train_epochs": 2, "seed": 7}}
    config = yaml.safe_load((new.from_record(run, "classification", "mine") / "config.yaml").read_text())
    assert [config["training"][key] for key in ("learning_rate", "num_train_epochs", "seed")] == [0.003, 2, 7]
    assert [config["peft"][key] for key in ("r", "lora_alpha")] == [4, 32]


def test_a_run_that_does_not_say_its_method_is_not_guessed_at():
    run = env.DATA / "results" / "01_classification" / "tiny-encoder" / "rate-pretrained-0.001-0.json"
    with pytest.raises(ValueError, match="does not say how it was trained: pass method="):
        new.from_record(run, "classification", "mine")
    folder = new.from_record(run, "classification", "mine", method="full")
    assert "peft" not in yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.parametrize(("way", "setting"), [("DoRA", "use_dora"), ("rsLoRA", "use_rslora")])
def test_a_variant_of_lora_is_carried_on(way, setting, capsys):
    run = next((env.DATA / "results" / "04_lora" / "tiny-encoder").glob(f"final-{way}-*.json"))
    config = yaml.safe_load((new.from_record(run, "classification", "mine") / "config.yaml").read_text())
    assert f"peft.{setting}" in capsys.readouterr().out
    assert config["peft"][setting] is True


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("04_lora/tiny-encoder/grid-LoRA-on-a-random-base-0.001-r16-a32-0.json", "began from a random base"),
        ("01_classification/tiny-encoder/rate-random-0.002-2.json", "began from random"),
        ("04_lora/tiny-encoder/grid-prompt-tuning-0.1-0.json", 'way is "prompt tuning": pass method=, one of full'),
        ("04_lora/tiny-encoder/grid-head-only-0.003-1.json", 'way is "head only": pass method=, one of full'),
    ],
)
def test_a_run_that_a_project_cannot_do_is_refused(file, message):
    with pytest.raises(ValueError, match=message):
        new.from_record(env.DATA / "results" / file, "classification", "mine")
    assert made() == ["mine.csv", "numbers.csv"]


def test_a_run_of_a_project_is_carried_on(kinds, capsys):
    train = kinds("tagger")
    settings = train.read_config() | {"training": train.read_config()["training"] | {"learning_rate": 0.123}}
    run = record.save(train.HERE / "runs", "one", settings=settings, metrics={})
    folder = new.from_record(run, "tokens", "mine")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["training"] == settings["training"]
    assert config["peft"] == settings["peft"]
    assert "training.output_dir" in capsys.readouterr().out.partition("left out: ")[2]
    assert load(folder).place(config) == train.place(settings)


DANGEROUS = {
    "push_to_hub": True,
    "hub_token": "secret",
    "hub_model_id": "somebody/else",
    "output_dir": "/somewhere",
    "report_to": "wandb",
    "logging_dir": "/somewhere",
    "resume_from_checkpoint": "/somewhere",
    "deepspeed": "/somewhere.json",
    "optim": "/somewhere/else",
    "optim_args": "a=b",
}


@pytest.mark.parametrize("kind", ["notebook", "project"])
def test_a_record_of_somebody_else_sets_numbers_and_choices_only(kind, kinds, capsys):
    if kind == "notebook":
        settings = {"method": "lora", "seed": 5, "trust_remote_code": True, **DANGEROUS}
        expected = {"trust_remote_code", *DANGEROUS}
    else:
        config = kinds("encoder").read_config()
        settings = config | {"training": config["training"] | DANGEROUS | {"seed": 5}, "more": {"a": 1}}
        settings["model"] = {"pretrained_model_name_or_path": "tiny-encoder", "trust_remote_code": True}
        expected = {"model.trust_remote_code", "more.a", *(f"training.{name}" for name in DANGEROUS)}
    folder = new.from_record({"settings": settings}, "classification", "mine")
    left_out = capsys.readouterr().out.splitlines()[0].partition("left out: ")[2].split(", ")
    assert expected <= set(left_out)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["training"]["seed"] == 5
    template = yaml.safe_load((new.TEMPLATES / "classification" / "config.yaml").read_text())
    assert {name: template["training"].get(name) for name in DANGEROUS} == {
        name: config["training"].get(name) for name in DANGEROUS
    }
    assert set(config["model"]) == set(template["model"])


# ---- In step with the notebooks ------------------------------------------------------------------------------------


def take_home(notebook, changes):
    """The names that a take-home cell has made; `changes` replaces text in it, each of which must be there."""
    book = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4)
    code = book.cells[tagged(book, "take-home")[0]].source
    for old, wanted in changes.items():
        assert old in code, f"the cell has no {old}"
        code = code.replace(old, wanted)
    space = {}
    exec(code, space)
    return space


def losses(history):
    return [row["loss"] for row in history if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "model", "options", "settings"),
    [
        ("01_classification", "tiny-encoder", {"method": "full"}, {"learning_rate": 1e-3}),
        ("04_lora", "tiny-encoder", {"method": "lora"}, {"learning_rate": 3e-3}),
        (
            "02_generation",
            "tiny-decoder",
            {"method": "full"},
            {
                "learning_rate": 1e-3,
                "train_sampling_strategy": "random",
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
            },
        ),
    ],
)
def test_the_losses_are_those_of_the_notebook(notebook, model, options, settings):
    changes = {
        f"../data/models/{model}": env.model_path(model),
        'save_strategy="no"': 'save_strategy="no", logging_steps=1',
    }
    if model == "tiny-encoder":
        small_file("reviews/validation.csv", Path.cwd(), 150).rename("given.csv")
        changes |= {"../data/reviews/validation.csv": "given.csv", "set_seed(0)": "set_seed(42)"}
        changes |= {"EPOCHS = 4" if notebook == "01_classification" else "EPOCHS = 2": "EPOCHS = 1"}
        if notebook == "04_lora":
            changes |= {"(200 + 10 * len(names))": "1"}  # no more epochs for few rows
            changes |= {"trainer.train()": "hf.set_seed(42) or trainer.train()"}  # its first prediction draws numbers
        space = take_home(notebook, changes)
        texts = space["Dataset"].from_dict(
            {"text": space["table"]["text"].astype(str), "label": space["table"]["label"].astype(str)}
        )
        parts = texts.class_encode_column("label").train_test_split(0.2, stratify_by_column="label", seed=0)
        names = parts["train"].features["label"].names
        for part, rows in parts.items():
            lines = [{"text": row["text"], "label": names[row["label"]]} for row in rows]
            Path(f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        task = "classification"
    else:
        rows = json.loads((env.DATA / "titles" / "validation.json").read_text())[:120]
        Path("given.jsonl").write_text(
            "\n".join(json.dumps({"instruction": row["review"], "output": row["title"]}) for row in rows)
        )
        changes |= {"../data/titles/validation.json": "given.jsonl", "EPOCHS = 512, None, 4": "EPOCHS = 512, None, 1"}
        space = take_home(notebook, changes)
        for part, held in (("train", "train"), ("test", "few")):
            talks = space[held]["talk"]
            Path(f"{part}.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
        task = "generation"
    settings = {"seed": 42, "num_train_epochs": 1, "logging_steps": 1, "disable_tqdm": True, **settings}
    settings = {f"training.{key}": value for key, value in settings.items()}
    files = ["train.jsonl", "test.jsonl", "test.jsonl"]
    folder = new.project(task, "mine", model=model, data=files, settings=settings, **options)
    load(folder).main()
    found = losses(record.load(folder / "runs" / "main.json")["curve"])
    wanted = losses(space["trainer"].state.log_history)
    assert len(found) == len(wanted) > 5
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_template_that_rewrites_earlier_answers_says_so_or_trains_the_last_one(kinds):
    train = kinds("decoder")
    config = train.read_config()
    tokenizer = copy.deepcopy(train.load_tokenizer(config))
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' %}Hm. {% endif %}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    talk = [{"role": role, "content": f"{n} is it."} for n in "abc" for role in ("user", "assistant")]
    rows = Dataset.from_dict({"messages": [talk[:2], talk]})
    with pytest.raises(train.ConfigError, match=r"Set data.answers: last.* It is so in 1 rows: 2\."):
        train.encode(rows, tokenizer, config)
    examples = train.encode(rows, tokenizer, config | {"data": config["data"] | {"answers": "last"}})
    assert examples["labels"][:] == text.tokenize_chat(rows, tokenizer, answers="last")["labels"][:]


def test_the_readme_has_the_name_of_the_model_and_an_optimizer_of_unknown_memory(monkeypatch, tmp_path):
    place = shutil.copytree(env.model_path("tiny-encoder"), tmp_path / "package" / "model")  # as that of minilm
    monkeypatch.setattr(env, "model_path", lambda name: str(place))
    folder = new.project("classification", "new", **MINE, model="minilm", settings={"training.optim": "ademamix"})
    told = (folder / "README.md").read_text()
    assert "The model is minilm, trained by" in told
    assert "The memory of ademamix is unknown: below is that of" in told


@pytest.mark.parametrize("kind", ["decoder", "seq2seq", "tagger"])
def test_the_examples_are_those_of_helpers_text(kind, kinds):
    from helpers import data, text

    train = kinds(kind)
    tokenizer, rows = train.load_tokenizer(train.read_config()), train.read_rows("data/train.jsonl")
    found = Dataset.from_list(rows.to_list())
    if kind == "decoder":  # with several turns
        wanted = text.tokenize_chat(found, tokenizer)
        assert max(len(row["messages"]) for row in rows) > 3
    elif kind == "seq2seq":
        texts = [[message["content"] for message in row["messages"]] for row in rows]
        pairs = [{"asked": "\n".join(prompt), "said": answer} for *prompt, answer in texts]
        wanted = text.tokenize_pairs(Dataset.from_list(pairs), tokenizer, source="asked", target="said")
    else:
        found = data.check_tokens(found, labels=train.read_config()["data"]["labels"], duplicates="ignore")
        wanted = text.align_labels(found, tokenizer)
    made = train.encode(rows, tokenizer, train.read_config())
    for name in ("input_ids", "attention_mask", "labels"):
        assert [example[name] for example in made] == wanted[name][:]


@pytest.mark.slow
def test_the_notebook_with_the_panel_predicts_memory_and_tunes(monkeypatch):
    settings = QUICK | {"training.max_steps": 2}
    folder = new.project("classification", "mine", settings=settings, panel=True, **MINE)
    monkeypatch.chdir(folder)
    load(folder)
    space = {}
    for cell in nbformat.read(folder / "panel.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
    space["panel"].start(learning_rate=1e-3)
    space["panel"].wait()
    [run] = record.load(folder / "runs" / "tune")
    assert run["settings"]["learning_rate"] == 1e-3
    assert run["outcome"] == "finished"
    options = MINE | {"data": "../mine.csv", "method": "lora"}
    tuned = new.from_record(run, "classification", folder / "tuned", **options)
    assert yaml.safe_load((tuned / "config.yaml").read_text())["training"]["learning_rate"] == 1e-3


def test_the_function_that_finds_a_whole_checkpoint_is_that_of_notebook_03():
    book = nbformat.read(NOTEBOOKS / "03_full_fine_tuning.ipynb", as_version=4)
    [shown] = [
        cell.source for cell in book.cells if "def last_whole_checkpoint" in cell.source and cell.cell_type == "code"
    ]
    body = shown[shown.index("def last_whole_checkpoint") :].split("\n\n\n")[0].strip()
    assert all(body in (new.TEMPLATES / task / "train.py").read_text() for task in new.KINDS)


# ---- The examples where they lie -----------------------------------------------------------------------------------


def functions(task, name="train"):
    tree = ast.parse((new.TEMPLATES / task / f"{name}.py").read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if hasattr(node, "name")}


@pytest.mark.parametrize("task", new.KINDS)
def test_the_notebook_has_the_steps_of_train_py(task):
    cells = nbformat.read(new.TEMPLATES / task / "train.ipynb", as_version=4).cells
    steps = "\n".join(cell.source for cell in cells[2:] if cell.cell_type == "code")
    assert ast.dump(ast.parse(steps)) == ast.dump(ast.Module(functions(task)["main"].body, []))
    assert not any(cell.outputs for cell in cells if cell.cell_type == "code")


OWN = {  # what one of the three says otherwise than the others
    "train": {
        "read_config", "begin", "read_rows", "load_tokenizer", "encode", "task_type", "network", "peft_config",
        "quantization_config", "load_model", "best", "make_trainer", "evaluate", "main", "read_part", "predicted",
        "training_arguments", "save_record",
    },
    "predict": {"answers", "main"},
}  # fmt: skip


@pytest.mark.parametrize("name", ["train", "predict"])
def test_what_the_three_examples_share_is_the_same(name):
    first, *others = (functions(task, name) for task in new.KINDS)
    for other in others:
        shared = (set(first) & set(other)) - OWN[name]
        assert len(shared) >= {"train": 15, "predict": 4}[name]
        assert [one for one in sorted(shared) if ast.dump(first[one]) != ast.dump(other[one])] == []


@pytest.mark.parametrize("name", ["verdict", "report", "service"])
def test_the_files_that_no_task_changes_are_the_same(name):
    files = [file for task in new.KINDS if (file := new.TEMPLATES / task / f"{name}.py").exists()]
    assert len({file.read_bytes() for file in files}) == 1 < len(files)


@pytest.mark.parametrize("task", new.KINDS)
def test_a_project_is_the_example_but_for_settings_readme_and_data(task, kinds):
    folder = kinds({"classification": "encoder", "tokens": "tagger", "generation": "decoder"}[task]).HERE
    assert (folder / "serve.py").exists() == (folder / "service.py").exists() == (task != "tokens")
    for file in {*new.FILES} - {"config.yaml"} - ({"serve.py", "service.py"} if task == "tokens" else set()):
        assert (folder / file).read_bytes() == (new.TEMPLATES / task / file).read_bytes()
    example = (new.TEMPLATES / task / "config.yaml").read_text().splitlines()
    made = (folder / "config.yaml").read_text().splitlines()
    assert [line.partition(":")[0] for line in made[: len(example)]] == [line.partition(":")[0] for line in example]
    assert "## This example" not in (folder / "README.md").read_text()


@pytest.mark.slow
def test_an_example_trains_where_it_lies_and_leaves_no_file_that_git_sees(tmp_path):
    folder = new.TEMPLATES / "classification"
    quick = (folder / "config.yaml").read_text().replace("runs/main", "runs/tested-where-it-lies")
    for name, value in QUICK.items():
        quick = new._with_settings(quick, {name: value})
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / "tested.yaml").write_text(new._with_settings(quick, {"training.save_strategy": "no"}))

    def seen_by_git():
        return subprocess.run(["git", "status", "--short"], cwd=folder, capture_output=True, text=True).stdout

    before = seen_by_git()
    try:
        for script in (["train.py", "runs/tested.yaml"], ["predict.py", "Good.", "--config", "runs/tested.yaml"]):
            done = subprocess.run(
                [sys.executable, *script], cwd=folder, env=environment(), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["predicted"] in ("negative", "neutral", "positive")
        assert seen_by_git() == before
    finally:
        (folder / "runs" / "tested.yaml").unlink()
        (folder / "runs" / "tested-where-it-lies.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "runs" / "tested-where-it-lies", ignore_errors=True)


# ---- Tracking, installing, the page --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_run_is_tracked_without_a_network(tracker, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = QUICK | {"training.max_steps": 2, "training.report_to": tracker, "training.save_strategy": "no"}
    folder = new.project("classification", "mine", settings=settings, **MINE)
    assert tracker in (folder / "requirements.txt").read_text()
    monkeypatch.chdir(folder)
    load(folder).main()
    kept = {"tensorboard": "events.out.tfevents*", "wandb": "run-*.wandb"}[tracker]
    assert list(folder.rglob(kept)), sorted(path.name for path in folder.rglob("*"))
    assert record.load(folder / "runs" / "main.json")["metrics"]["test_loss"] > 0


def test_a_tracker_that_is_not_installed_is_named_without_a_version(monkeypatch):
    def missing(name):
        raise new.PackageNotFoundError(name)

    monkeypatch.setattr(new, "version", missing)
    packages = new._packages("tokens", "lora", {"training": {"report_to": ["trackio"]}})
    assert [new._pinned(package) for package in packages][-2:] == ["seqeval", "trackio"]


def test_a_finished_run_says_so_and_other_settings_do_not_go_on_with_it(kinds):
    train = kinds("encoder")
    config = train.read_config()
    arguments = train.training_arguments(config)
    other = config | {"training": config["training"] | {"seed": 5}}
    train.begin(other, arguments)
    train.begin(config, arguments)  # there is no checkpoint yet, so nothing would go on
    checkpoint = Path(arguments.output_dir) / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    train.begin(config, arguments)
    with pytest.raises(train.ConfigError, match=r"runs/main was begun with other settings \(training.seed\)"):
        train.begin(other, arguments)
    two = SimpleNamespace(output_dir=arguments.output_dir, process_index=0, world_size=2, n_gpu=0)
    with pytest.raises(train.ConfigError, match=r"other settings \(machine.processes\)"):
        train.begin(config, two)
    file = train.HERE / "data" / "train.jsonl"
    rows = file.read_text()
    file.write_text(rows.partition("\n")[2])
    with pytest.raises(train.ConfigError, match=r"other settings \(content.data/train.jsonl\)"):
        train.begin(config, arguments)
    file.write_text(rows)
    train.record_file(config).write_text("{}")
    done = subprocess.run([sys.executable, "train.py"], cwd=train.HERE, capture_output=True, text=True)
    assert "this run is finished, see runs/main.json" in done.stdout, done.stderr


SAID = [  # a file for predict.py, what is in it, and what is said of it
    ("x.tsv", "text\tlabel\nGood\t1\n", "x.tsv is neither .txt, with a text a line, nor .jsonl"),
    ("x.txt", "Good\n\nBad\n", "x.txt, line 2 has no text"),
    ("x.jsonl", '{"text": "Good"}\n{"txt": "Bad"}\n', "x.jsonl, line 2 has no text"),
    ("x.jsonl", "Good\n", "x.jsonl, line 1 is no JSON"),
    ("x.txt", "\ufeff\nGood\n", "x.txt, line 1 has no text"),
    ("none.txt", None, "none.txt cannot be read"),
]


@pytest.mark.parametrize(("name", "text", "message"), SAID, ids=[message for *_, message in SAID])
def test_a_file_that_predict_cannot_read_is_said_in_one_sentence(name, text, message, kinds, monkeypatch):
    monkeypatch.setitem(sys.modules, "train", kinds("encoder"))
    predict = load(kinds("encoder").HERE, "predict")
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(SystemExit, match=re.escape(message)):
        predict.read(name)


def test_predict_refuses_labels_in_another_order_than_the_training_had(kinds, monkeypatch):
    train = kinds("encoder")
    monkeypatch.setitem(sys.modules, "train", train)
    predict = load(train.HERE, "predict")
    text = (train.HERE / "config.yaml").read_text().replace("runs/main", "runs/asked")
    (train.HERE / "asked.yaml").write_text(text)
    config = train.read_config("asked.yaml")
    train.begin(config, train.training_arguments(config))
    train.record_file(config).write_text("{}")
    config["data"]["labels"].reverse()
    (train.HERE / "asked.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "argv", ["predict.py", "Good", "--config", "asked.yaml"])
    with pytest.raises(SystemExit, match=r"data.labels in asked.yaml changed since the training began"):
        predict.main()
    (train.HERE / "asked.yaml").write_text(yaml.safe_dump(config | {"trainng": {}}))
    with pytest.raises(SystemExit, match=r"asked.yaml, sections: trainng is not known"):
        predict.main()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nothere.yaml", None, "nothere.yaml, which cannot be read: No such file"),
        ("indented.yaml", ("  seed:", "      seed:"), "indented.yaml, which is no YAML"),
        ("kill.yaml", ("eval_strategy: epoch", "eval_strategy: epochs"), "kill.yaml, training: epochs is not"),
    ],
)
def test_train_says_a_mistake_in_the_file_in_one_line(name, change, message, kinds, monkeypatch):
    folder = kinds("tagger").HERE
    if change:
        (folder / name).write_text((folder / "config.yaml").read_text().replace(*change))
    monkeypatch.setattr(sys, "argv", ["train.py", name])
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(SystemExit, match=re.escape(message)):
        runpy.run_path(str(folder / "train.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("encoder", '{"text": "Good"', ", line 2 is no JSON"),
        ("encoder", b"\xff", ", line 2 is no JSON"),
        ("encoder", '["Good", "positive"]', ", line 2 has no text and no label"),
        ("encoder", '{"text": "Good", "label": "god"}', ", line 2 has god, and labels has "),
        ("encoder", '{"text": null, "label": "positive"}', ", line 2 has null for a text"),
        ("tagger", '{"tokens": ["Oslo"], "tags": ["B-CITY"]}', ", line 2 has B-CITY, and labels has "),
        ("tagger", '{"tokens": "Oslo", "tags": ["O", "O", "O", "O"]}', ", line 2 has something else than lists"),
        ("decoder", '{"text": "Good"}', ", line 2 has no messages"),
        ("decoder", '{"messages": [{"role": "user", "content": "Good?"}]}', ", line 2 needs messages with a role"),
        ("decoder", '{"messages": null}', ", line 2 needs messages with a role and a text each, at least two"),
        ("encoder", None, " cannot be read: No such file"),
    ],
)
def test_train_says_a_mistake_in_the_data_with_its_line(kind, line, message, kinds):
    train = kinds(kind)
    labels = train.read_config()["data"].get("labels")
    file = train.HERE / "data" / "broken.jsonl"
    if line is not None:
        first = (train.HERE / "data" / "train.jsonl").read_bytes().partition(b"\n")[0]
        file.write_bytes(first + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n\n")
    with pytest.raises(train.ConfigError, match=re.escape(f"data: data/broken.jsonl{message}")):
        train.read_rows("data/broken.jsonl", *([labels] if labels else []))
    file.unlink(missing_ok=True)


def test_train_says_which_file_of_data_is_missing(kinds, monkeypatch):
    folder = kinds("tagger").HERE
    text = (folder / "config.yaml").read_text().replace("data/test.jsonl", "data/tset.jsonl")
    (folder / "other.yaml").write_text(text.replace("runs/main", "runs/other"))
    monkeypatch.setattr(sys, "argv", ["train.py", "other.yaml"])
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(SystemExit, match=r"other.yaml, data: data/tset.jsonl cannot be read: No such file"):
        runpy.run_path(str(folder / "train.py"), run_name="__main__")


def test_an_installed_copy_has_the_templates(tmp_path):
    code = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", code, "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    subprocess.run(command, cwd=env.REPOSITORY, check=True, capture_output=True)
    listed = ["git", "ls-files", "helpers/templates"]
    files = subprocess.run(listed, cwd=env.REPOSITORY, check=True, capture_output=True, text=True).stdout.split()
    assert len(files) > 25
    assert [file for file in files if not (tmp_path / "built" / file).exists()] == []


COMMANDS = re.findall(r"-m helpers\.new (.+)", README)


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_makes_a_project(line):
    Path("mine.csv").rename("reviews.csv")
    Path("data").symlink_to(env.DATA)
    arguments = shlex.split(line, comments=True)
    arguments[1] = Path(arguments[1]).name
    new.main(arguments)
    assert "train.py" in made(arguments[1])
