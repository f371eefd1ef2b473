"""The take-home cells run alone, in an empty folder, with no network and no `helpers`, on files of several shapes.

A take-home cell begins with settings, one assignment a line, to which the tests give other values. Each cell trains to
its end on a file of one shape, and must then be better than chance; on files of other shapes it takes a few steps, as
there the question is whether they are read. With RELEASE=1 it trains to its end on all of them, each time in a Python
of its own; without, in copies of one Python that has the libraries imported already, which takes seven seconds.
"""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from notebooks import NOTEBOOKS, tagged

ROOT = Path(__file__).resolve().parents[1]
LESSONS = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not path.name.startswith("00")]
RELEASE = os.environ.get("RELEASE") == "1"

# ---- Files of several shapes ---------------------------------------------------------------------------------------

PLAIN = "the box came on monday and i put it next to my old one before lunch"
CUES = {
    "spam": ["winner", "prize", "free", "cash", "claim", "click"],
    "ham": ["meeting", "tomorrow", "thanks", "report", "call", "train"],
    "bad": ["awful", "broken", "poor", "terrible", "useless"],
    "middling": ["okay", "average", "acceptable", "ordinary", "fair"],
    "good": ["great", "excellent", "perfect", "wonderful", "love"],
}


def text_about(kind, words, draw):
    """A text of so many words with a few that give its kind away, near its beginning."""
    start = draw.choices(PLAIN.split(), k=6) + draw.choices(CUES[kind], k=3)
    draw.shuffle(start)
    return " ".join(start + draw.choices(PLAIN.split(), k=words - len(start)))


def messages(path, draw, count=500):
    """Two text labels and other column names."""
    rows = [(kind, text_about(kind, draw.randint(9, 25), draw)) for kind in draw.choices(["spam", "ham"], k=count)]
    write_csv(path, ["kind", "message"], rows)
    return {"TEXT": "message", "LABEL": "kind"}, [kind for kind, _ in rows]


def long_reviews(path, draw, count=3000):
    """A few thousand rows, one text in a hundred longer than the model takes, and numbers as labels."""
    rows = []
    for number in range(count):
        stars = draw.randrange(3)
        words = draw.randint(600, 900) if number % 100 == 0 else draw.randint(10, 20)
        rows.append((text_about(["bad", "middling", "good"][stars], words, draw), stars))
    write_csv(path, ["body", "stars"], rows)
    return {"TEXT": "body", "LABEL": "stars"}, [str(stars) for _, stars in rows]


def exported_table(path, draw, count=500):
    """Label first, columns that nobody asked for, quotes, commas and line ends in the texts, a byte order mark."""
    rows = []
    for number in range(count):
        kind = draw.choice(["bad", "good"])
        words = text_about(kind, draw.randint(12, 30), draw).split()
        text = f'"{" ".join(words[:5])}",\n{" ".join(words[5:])}\n'
        rows.append((kind.upper(), f"2026-01-{number % 28 + 1:02d}", text, "", number))
    write_csv(path, ["Verdict", "date", "Customer comment", "reply", "id"], rows, encoding="utf-8-sig")
    return {"TEXT": "Customer comment", "LABEL": "Verdict"}, [row[0] for row in rows]


def json_lines(path, draw, count=500):
    """JSON, one object a line, with fields that nobody asked for."""
    kinds = ["spam", "ham"] * (count // 2)
    rows = [(number, kind, text_about(kind, draw.randint(9, 25), draw)) for number, kind in enumerate(kinds)]
    lines = [json.dumps({"id": number, "kind": kind, "message": text}) for number, kind, text in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"TEXT": "message", "LABEL": "kind"}, [kind for _, kind, _ in rows]


def write_csv(path, header, rows, encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])


def instructions(path, draw, count=300):
    """JSONL with `instruction`, `output` and an `input` that is sometimes empty; one row is far too long."""
    with path.open("w", encoding="utf-8") as file:
        for number, (asked, about, said) in enumerate(said_about(draw, count)):
            row = {"instruction": asked, "input": about if number % 2 else "", "output": said}
            if not number % 2:
                row["instruction"] = f"{about} {asked}"
            if number == 7:
                row["input"] = "la " * 2000
            file.write(json.dumps(row) + "\n")
    return {}


def conversations(path, draw, count=300):
    """A JSON list of `messages`, half with a system message, all with other columns beside."""
    rows = []
    for number, (asked, about, said) in enumerate(said_about(draw, count)):
        talk = [{"role": "system", "content": "You are brief."}] if number % 2 else []
        talk += [{"role": "user", "content": f"{about} {asked}"}, {"role": "assistant", "content": said}]
        rows.append({"id": number, "messages": talk, "source": "mine"})
    path.write_text(json.dumps(rows), encoding="utf-8")
    return {}


def said_about(draw, count):
    """What is asked, the text that it is about, and the right answer, which depends on the text."""
    for _ in range(count):
        kind = draw.choice(["bad", "good"])
        yield "Verdict?", text_about(kind, draw.randint(9, 14), draw), "Send it back" if kind == "bad" else "Keep it"


# ---- Running a cell ------------------------------------------------------------------------------------------------


def with_settings(code, settings):
    """The code with other right-hand sides; a setting that the code does not have is an error."""
    for setting, value in settings.items():
        code, count = re.subn(rf"(?m)^{setting} = .*$", lambda _, line=f"{setting} = {value!r}": line, code, count=1)
        assert count, f"the take-home cell has no line {setting} = ..."
    return code


def take_home(name, settings, few_steps=False):
    """The take-home cell of a notebook with other settings, and with a training of three steps if so wished."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = with_settings(notebook.cells[tagged(notebook, "take-home")[0]].source, settings)
    if few_steps:
        code, count = re.subn(r"\bnum_train_epochs=(EPOCHS|\d+)", "max_steps=3", code)
        assert count == 1, f"the take-home cell of {name} sets num_train_epochs {count} times, not once"
    return code


def written(code, folder):
    """Write code as a script that cannot import `helpers`."""
    script = folder / "take_home.py"
    script.write_text('import sys\n\nsys.modules["helpers"] = None\n' + code, encoding="utf-8")
    return script


def environment(folder):
    """No network, nothing of this repository to import, caches in a folder of their own, and one thread.

    Two threads on cores that others use too were six times slower than one.
    """
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}


def run_alone(code, folder, timeout=400):
    """Run code in a fresh Python with `helpers` made unimportable; returns what it printed."""
    command, place = [sys.executable, written(code, folder).name], dict(cwd=folder, env=environment(folder))
    done = subprocess.run(command, **place, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


COPIES = """
import json, os, runpy, sys

sys.modules["helpers"] = None
import bitsandbytes, datasets, pandas, peft, sklearn.metrics, torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import BertForSequenceClassification, LlamaForCausalLM, Trainer, TrainingArguments

for line in sys.stdin:
    script, printed, errors = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(os.path.dirname(script))
        os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that runs code alone in a folder and returns what it printed."""
    if RELEASE or not hasattr(os, "fork"):
        yield run_alone
        return
    home = tmp_path_factory.mktemp("alone")
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", COPIES], cwd=home, env=environment(home), **pipes) as python:

        def run_in_a_copy(code, folder):
            printed, errors = folder / "printed.txt", folder / "errors.txt"
            python.stdin.write(json.dumps([str(path) for path in (written(code, folder), printed, errors)]) + "\n")
            python.stdin.flush()
            code = python.stdout.readline().strip()
            assert code == "0", f"{printed.read_text()[-2000:]}\n{errors.read_text()[-4000:]}"
            return printed.read_text(encoding="utf-8")

        yield run_in_a_copy
        python.stdin.close()


def printed_accuracy(text):
    """The last accuracy that was printed, as a share."""
    found = re.findall(r"accuracy\D{0,40}?(\d+(?:\.\d+)?)\s*(%?)", text, re.IGNORECASE)
    assert found, f"no accuracy was printed: {text[-500:]!r}"
    number, percent = found[-1]
    return float(number) / (100 if percent else 1)


# ---- The cells -----------------------------------------------------------------------------------------------------

CLASSIFIERS = {  # notebook: the files its cell must take; to its end it trains on the first
    "01_classification": [messages, long_reviews, exported_table],
    "03_full_fine_tuning": [exported_table, messages],
    "04_lora": [json_lines, messages, exported_table],
    "09_beyond_one_machine": [json_lines],
}
ELSEWHERE = {"09_beyond_one_machine"}  # it trains to its end by two processes, in test_distributed.py
WRITERS = {  # the same for models that write
    "02_generation": [instructions, conversations],
    "05_qlora": [conversations, instructions],
}
OWN_TESTS = {"06_multi_adapter", "07_domain_adaptation", "10_trl_and_preferences", "11_sharing_and_serving"}
OWN_TESTS |= {"08_break_it"}  # in test_preflight.py


def cases(table):
    """(notebook, shape of the file, whether a few steps are enough)"""
    found, present = [], {path.stem for path in LESSONS}
    for name in table.keys() & present:
        for write in table[name]:
            few_steps = (name in ELSEWHERE or write is not table[name][0]) and not RELEASE
            found.append(pytest.param(name, write, few_steps, id=f"{name}-{write.__name__}"))
    return sorted(found, key=lambda case: case.id)  # the same order in all workers


def test_every_lesson_has_files_for_its_take_home_cell():
    missing = [path.name for path in LESSONS if path.stem not in {*CLASSIFIERS, *WRITERS, *OWN_TESTS}]
    assert not missing, f"write the files that their take-home cells must take: {missing}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write", "few_steps"), cases(CLASSIFIERS))
def test_the_take_home_cell_runs_alone_on_files_of_other_shapes(name, write, few_steps, alone, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    file, out = tmp_path / ("mine.jsonl" if write is json_lines else "mine.csv"), tmp_path / "saved"
    settings, labels = write(file, random.Random(7), **({"count": 200} if few_steps else {}))
    settings |= {"FILE": str(file), "OUT": str(out), "MODEL": str(ROOT / "data" / "models" / "tiny-encoder")}
    before = file.read_bytes()
    printed = alone(take_home(name, settings, few_steps), tmp_path)

    assert file.read_bytes() == before
    model = AutoModelForSequenceClassification.from_pretrained(out, local_files_only=True)
    assert {str(label) for label in model.config.id2label.values()} == set(labels)
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert model(**tokenizer("a great box", return_tensors="pt")).logits.shape == (1, len(set(labels)))
    majority = max(labels.count(label) for label in set(labels)) / len(labels)
    accuracy = printed_accuracy(printed)
    assert few_steps or accuracy > majority + 0.1, f"no better than the most frequent label:\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write", "few_steps"), cases(WRITERS))
def test_the_take_home_cell_of_a_writer_runs_alone_on_files_of_other_shapes(name, write, few_steps, alone, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file, out, count = tmp_path / "mine.json", tmp_path / "saved", 60 if few_steps else 300
    settings = write(file, random.Random(7), count)
    settings |= {"FILE": str(file), "OUT": str(out), "MODEL": str(ROOT / "data" / "models" / "tiny-decoder")}
    before = file.read_bytes()
    printed = alone(take_home(name, settings, few_steps), tmp_path)

    assert file.read_bytes() == before
    left_out = int(re.search(rf"(\d+) of {count} rows", printed)[1])
    assert left_out == (write is instructions), printed
    accuracy = printed_accuracy(printed)
    assert few_steps or accuracy > 0.8, f"two answers, and a text that says which: chance is 0.5\n{printed}"
    AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert AutoTokenizer.from_pretrained(out, local_files_only=True).chat_template


@pytest.mark.slow
@pytest.mark.parametrize(
    "as_messages", [False, pytest.param(True, marks=pytest.mark.release)], ids=["texts", "messages"]
)
def test_the_take_home_cell_of_pairs_scores_before_and_after_and_takes_the_control(as_messages, alone, tmp_path):
    from transformers import AutoModelForCausalLM

    pytest.importorskip("trl")
    file, out, rows = tmp_path / "pairs.jsonl", tmp_path / "saved", []
    for number, (asked, about, said) in enumerate(said_about(random.Random(7), 40)):
        texts = {"prompt": f"{'la ' * 2000 * (number == 3)}{about} {asked}", "chosen": said}
        texts["rejected"] = "Keep it" if said == "Send it back" else "Send it back"
        talk = {key: [{"role": "user" if key == "prompt" else "assistant", "content": texts[key]}] for key in texts}
        rows.append({"id": number, **(talk if as_messages else texts)})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"FILE": str(file), "OUT": str(out), "MODEL": str(ROOT / "data" / "models" / "tiny-decoder")}
    printed = alone(take_home("10_trl_and_preferences", settings, few_steps=True), tmp_path)

    assert "1 of 40 pairs" in printed
    shares = [float(share) for share in re.findall(r"\b[01]\.\d\d\b", printed.partition("held-out")[2])]
    assert len(shares) == 4, printed  # before, after SFT, after more of it, after DPO
    assert ("NO GAIN" in printed) == (shares[3] <= max(shares[1:3]))
    base, sft, tuned = (AutoModelForCausalLM.from_pretrained(f) for f in (settings["MODEL"], out / "sft", out))
    weights = [model.model.layers[0].mlp.up_proj.weight for model in (base, sft, tuned)]
    assert not weights[0].equal(weights[1])
    assert not weights[1].equal(weights[2])


@pytest.mark.slow
def test_the_take_home_cell_of_a_server_answers_by_task_and_leaves_out_what_is_broken(alone, tmp_path):
    folder, file, out = tmp_path / "mine", tmp_path / "asked.jsonl", tmp_path / "out" / "answers.jsonl"
    for name, skill in {"naming": "titles", "sorting": "intent", "cut": "rewrite", "foreign": "rewrite"}.items():
        shutil.copytree(ROOT / "data" / "models" / "adapters" / skill, folder / name)
    weights, config = folder / "cut" / "adapter_model.safetensors", folder / "foreign" / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:50_000])
    config.write_text(config.read_text().replace("tiny-decoder", "other-decoder"))
    (folder / "empty").mkdir()
    review, intents = "I would sum it up as a handy coffee machine. What is its title?", {"delivery", "refund", "login"}
    asked = [("naming", review), ("sorting", "My parcel is late. What is this about?"), ("poems", "Write one.")] * 9
    file.write_text("\n".join(json.dumps({"task": task, "prompt": prompt, "id": 1}) for task, prompt in asked) + "\n\n")
    settings = {"ADAPTERS": str(folder), "FILE": str(file), "OUT": str(out)}
    settings["MODEL"] = str(ROOT / "data" / "models" / "tiny-decoder")
    printed = alone(take_home("06_multi_adapter", settings), tmp_path)

    assert "18 of 27 requests answered by ['naming', 'sorting']" in printed
    assert all(name in printed for name in ("cut", "empty", "foreign", "other-decoder"))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["task"] for row in rows] == [task for task, _ in asked]
    assert {row["answer"] for row in rows if row["task"] == "naming"} == {"Handy coffee machine"}
    assert {row["answer"] for row in rows if row["task"] == "sorting"} <= intents
    assert not any("answer" in row for row in rows if row["task"] == "poems")


@pytest.mark.slow
def test_the_take_home_cell_of_a_domain_keeps_its_words_whole_and_lowers_the_loss(alone, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

    draw, file, out = random.Random(7), tmp_path / "mine.txt", tmp_path / "saved"
    texts = [f"Number {n}: the {draw.choice(['box', 'lid'])} is a zwibbel, and so is Quorfy's." for n in range(300)]
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    settings = {"FILE": str(file), "OUT": str(out), "MODEL": str(ROOT / "data" / "models" / "tiny-encoder")}
    printed = alone(take_home("07_domain_adaptation", settings), tmp_path)

    before, after = map(float, re.search(r"([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after < before, printed
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.tokenize("A zwibbel, Quorfy!") == ["a", "zwibbel", ",", "quorfy", "!"]
    old = AutoModelForMaskedLM.from_pretrained(settings["MODEL"]).get_input_embeddings().weight
    new = AutoModelForMaskedLM.from_pretrained(out, local_files_only=True).get_input_embeddings().weight
    assert len(new) > len(old)
    assert new[: len(old)].equal(old), "only the new words have other vectors"
    AutoModelForSequenceClassification.from_pretrained(out, num_labels=2, local_files_only=True)


@pytest.mark.slow
def test_the_take_home_cell_that_serves_an_adapter_merges_it_writes_its_card_and_stops(tmp_path):
    pytest.importorskip("uvicorn", reason="pip install -c constraints.txt -e '.[more]'")
    from huggingface_hub import ModelCard

    out, models = tmp_path / "mine" / "served", ROOT / "data" / "models"
    settings = {"ADAPTER": str(models / "adapters" / "titles"), "MODEL": str(models / "tiny-decoder"), "OUT": str(out)}
    settings["LICENCE, DATASETS, SCORES"] = ("mit", ["me/titles"], {"exact_match": 0.9})
    printed = run_alone(take_home("11_sharing_and_serving", settings), tmp_path)

    assert "said: Handy coffee machine" in printed
    assert not list(out.glob("adapter*")), "it is merged"
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.base_model, card.data.eval_results[0].metric_value) == (
        "mit",
        "tiny-decoder",
        0.9,
    )


# ---- The tools of these tests --------------------------------------------------------------------------------------


def test_the_take_home_runner_has_no_helpers(alone, tmp_path):
    for run in (run_alone, alone):
        assert run("print('alone')", tmp_path) == "alone\n"
        with pytest.raises(AssertionError, match="helpers"):
            run("from helpers import data", tmp_path)


def test_a_copy_has_nothing_of_the_one_before(alone, tmp_path):
    (tmp_path / "second").mkdir()
    assert alone("import os, sys\nsys.mine = 'first'\nprint(os.getcwd())", tmp_path) == f"{tmp_path}\n"
    assert alone("import sys\nprint(getattr(sys, 'mine', 'nothing'))", tmp_path / "second") == "nothing\n"


def test_a_training_that_cannot_be_cut_short_is_caught(monkeypatch):
    cell = nbformat.v4.new_code_cell("steps = 100", metadata={"tags": ["take-home"]})
    monkeypatch.setattr(nbformat, "read", lambda path, as_version: nbformat.v4.new_notebook(cells=[cell]))
    with pytest.raises(AssertionError, match="0 times, not once"):
        take_home("any", {}, few_steps=True)


def test_settings_are_replaced_once_and_only_where_they_are():
    assert with_settings('FILE = "a"  # yours\nread(FILE)', {"FILE": "b\\n.csv"}) == "FILE = 'b\\\\n.csv'\nread(FILE)"
    with pytest.raises(AssertionError, match="no line OUT"):
        with_settings('FILE = "a"', {"OUT": "b"})


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("accuracy 0.91", 0.91),
        ("Test accuracy: 91 %", 0.91),
        ("{'eval_accuracy': 0.5}\naccuracy = 1.0 (300 rows)", 1.0),
    ],
)
def test_an_accuracy_is_read_from_what_was_printed(text, share):
    assert printed_accuracy(text) == share
