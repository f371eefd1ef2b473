"""Projects of every task and method: made in a fresh interpreter, trained, killed, resumed, asked, run as notebook."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from new_projects import QUICK, QUICK_TO_WRITE, RELEASE, as_options, environment, fresh_interpreter, load, small_file
from transformers import TrainerCallback

from helpers import new, record

WRITERS = {"decoder": "tiny-decoder", "encoder-decoder": "tiny-seq2seq"}
COLUMNS = {
    "classification": ("reviews/validation.csv", []),
    "tokens": ("entities/validation.json", []),
    "decoder": ("chat/validation.jsonl", []),
    "encoder-decoder": ("titles/validation.json", ["--prompt", "{review} Title?", "--answer", "title"]),
}
COMBINATIONS = [
    (kind, method)
    for kind in COLUMNS
    for method in new.METHODS
    if method != "prefix" or kind in WRITERS  # the encoder here takes no prefix, which is refused: see test_new.py
]
if not RELEASE:  # each kind and each method
    COMBINATIONS = [
        ("classification", "full"),
        ("tokens", "lora"),
        ("decoder", "qlora"),
        ("decoder", "ia3"),
        ("encoder-decoder", "prefix"),
    ]
TASKS = {kind: "generation" if kind in WRITERS else kind for kind in COLUMNS}
FIRST = {kind: (kind, method) for kind, method in reversed(COMBINATIONS)}
# A notebook has the statements of its train.py (test_new.py), so that one of them runs in a kernel says enough.
AS_NOTEBOOK = [*FIRST.values()] if RELEASE else [FIRST["classification"]]
KILLED_AT = 5
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module", autouse=True)
def _forget_the_modules():
    yield
    for name in ("train", "predict", "scoring", "verdict", "report"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all projects")
    calls = []
    for kind, method in COMBINATIONS:
        file, columns = COLUMNS[kind]
        model = ["--model", WRITERS[kind]] if kind in WRITERS else []
        settings = as_options(QUICK_TO_WRITE if kind in WRITERS else QUICK)
        data = ["--data", str(small_file(file, folder))]
        calls.append([TASKS[kind], f"{kind} {method}", "--method", method, *model, *data, *columns, *settings])
    fresh_interpreter(calls, folder)
    return folder


class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_be_killed(train):
    child = os.fork()
    if child == 0:
        try:
            make_trainer = train.make_trainer
            train.make_trainer = lambda *given: make_trainer(*given, callbacks=[Killed()])
            train.main()
        finally:
            os._exit(1)  # it was not killed
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def losses(run):
    return [row["loss"] for row in run["curve"] if "loss" in row]


@pytest.mark.parametrize(("kind", "method"), COMBINATIONS)
def test_a_project_trains_goes_on_predicts_and_is_a_notebook(kind, method, projects, monkeypatch, capsys):
    folder = projects / f"{kind} {method}"
    monkeypatch.chdir(folder)
    train = load(folder)
    assert train_and_be_killed(train) == signal.SIGKILL
    assert not (folder / "runs" / "main.json").exists()
    train.main()
    assert "goes on from checkpoint-4" in capsys.readouterr().out
    run = record.load(folder / "runs" / "main.json")
    assert len(losses(run)) == 6
    assert (("peft" in run["settings"]), ("quantization" in run["settings"])) == (method != "full", method == "qlora")
    assert all(name in run["metrics"] for name in ("validation_loss", "test_loss"))
    assert set(run["baselines"]) == {"validation", "test"}
    assert run["warnings"], "six steps are too few for anything"
    assert all("lead_low" in one for name, one in run["baselines"]["test"].items() if name != "this model")
    assert "What looks wrong" in (folder / "runs" / "main" / "report.html").read_text(encoding="utf-8")

    predict = load(folder, "predict")
    monkeypatch.setattr(sys, "argv", ["predict.py", "--file", "data/test.jsonl", "--out", "said.jsonl"])
    predict.main()
    said = [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]
    check_answers(kind, train, said, run)
    with pytest.raises(SystemExit):
        predict.main()
    assert "said.jsonl is there already" in capsys.readouterr().err

    if method == "lora":  # an unbroken run has the same losses, to the last bit
        other = (folder / "config.yaml").read_text().replace("runs/main", "runs/unbroken")
        (folder / "unbroken.yaml").write_text(other)
        train.main("unbroken.yaml")
        assert losses(record.load(folder / "runs" / "unbroken.json")) == losses(run)

    if (kind, method) in AS_NOTEBOOK:  # it finds that nothing is left to train
        run_the_notebook(folder)
        assert record.load(folder / "runs" / "main.json")["metrics"] == pytest.approx(run["metrics"], abs=1e-6)


def check_answers(kind, train, said, run):
    """There is one for each row, and they are those that the test's score was taken from."""
    rows = train.read_rows("data/test.jsonl")
    assert len(said) == len(rows) > 0
    labels, metrics = run["settings"]["data"].get("labels"), run["metrics"]
    if kind == "classification":
        right = [one["predicted"] == row["label"] == one["label"] for one, row in zip(said, rows, strict=True)]
        assert metrics["test_accuracy"] == pytest.approx(sum(right) / len(right))
    elif kind == "tokens":
        assert all(
            len(one["predicted"]) == len(row["tokens"]) and one["tags"] == row["tags"]
            for one, row in zip(said, rows, strict=True)
        )
        assert {tag for one in said for tag in one["predicted"]} <= set(labels)
    else:
        right = [one["predicted"] == row["messages"][-1]["content"] for one, row in zip(said, rows, strict=True)]
        assert metrics["test_exact_match"] == pytest.approx(sum(right) / len(right))


# `find` is the same text in all examples (test_new.py), so one kind speaks for the others.
@pytest.mark.parametrize("kind", ["classification full", "tokens lora"][: 1 + RELEASE])
def test_rates_are_tried_in_short_runs_that_are_kept(kind, projects, monkeypatch, capsys):
    folder = projects / kind
    monkeypatch.chdir(folder)
    train = load(folder)
    train.find("config.yaml")
    tried = re.findall(r"learning_rate (\S+): \w+ ([\d.]+)", capsys.readouterr().out)
    assert len(tried) == 4
    best = max(tried, key=lambda one: float(one[1]))[1]
    found = train.read_config("config-found.yaml")["training"]
    assert float(dict(tried)[f"{found['learning_rate']:g}"]) == float(best)
    assert found["output_dir"] == "runs/main-found"
    monkeypatch.setattr(train, "load_model", None)  # nothing is trained again
    train.find("config.yaml")
    assert re.findall(r"learning_rate (\S+): \w+ ([\d.]+)", capsys.readouterr().out) == tried


def run_the_notebook(folder):
    """In a process of its own, as a kernel's threads here would be in the way of those that are forked later."""
    command = [sys.executable, "-c", "from nbclient.cli import main; main()", "--timeout=120", "train.ipynb"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(600)
def test_the_commands_work_as_written_and_go_on_after_kill_9(tmp_path):
    """Processes of their own: python -m helpers.new, train.py killed from outside, accelerate launch.

    (predict.py is run as a command in test_new.py, where an example lies.)
    """

    def run(*command, cwd):
        done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    data, python = small_file("reviews/validation.csv", tmp_path), sys.executable
    settings = as_options(QUICK | {"training.max_steps": 200})
    run(python, "-m", "helpers.new", "classification", "mine", "--data", str(data), *settings, cwd=tmp_path)
    folder = tmp_path / "mine"
    log = (tmp_path / "log").open("w")
    child = subprocess.Popen([python, "train.py"], cwd=folder, env=environment(), stdout=log, stderr=log)
    while not (folder / "runs/main/checkpoint-4/trainer_state.json").exists():
        assert child.poll() is None, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.05)
    child.kill()
    child.wait()
    for file in (folder / "config.yaml", folder / "runs/main/settings.json"):  # as if it had begun so: 200 take long
        file.write_text(re.sub("(max_steps.*) 200", r"\1 12", file.read_text()))
    launch = [python, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    assert "goes on from checkpoint-" in run(*launch, "train.py", cwd=folder)
    assert (folder / "runs" / "main.json").exists()


@pytest.mark.parametrize(("kind", "method"), [("classification", "full"), ("decoder", "qlora")][: 1 + RELEASE])
def test_two_processes_train_as_one_with_batches_of_both(kind, method, projects, monkeypatch):
    """The same rows make each step, so the losses are those of one process; the run is kept once."""
    folder, runs = projects / f"{kind} {method}", {}
    for processes, rows in ((1, 4), (2, 2)):
        text = (folder / "config.yaml").read_text().replace("runs/main", f"runs/of {processes}")
        text, found = re.subn(r"(per_device_train_batch_size:).*", rf"\1 {rows}", text)
        text, grouped = re.subn(r"(train_sampling_strategy:).*", r"\1 random", text)  # groups are of a process's rows
        assert (found, grouped) == (1, 1)
        (folder / f"of_{processes}.yaml").write_text(text)
        if processes == 1:
            monkeypatch.chdir(folder)
            load(folder).main("of_1.yaml")
        else:
            torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
            command = [sys.executable, *torchrun, "--rdzv-endpoint", "localhost:0", "train.py", "of_2.yaml"]
            done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stderr[-3000:]
        runs[processes] = record.load(folder / "runs" / f"of {processes}.json")
    one, two = runs[1], runs[2]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for name, value in one["metrics"].items():  # the Trainer weighs the losses of uneven last batches otherwise
        assert two["metrics"][name] == pytest.approx(value, rel=0.02 if name.endswith("loss") else 1e-6), name
