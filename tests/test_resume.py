"""Training killed at random moments and resumed is, to the last bit, the training that was never killed.

The function that finds the last whole checkpoint is the one that notebook 03 shows. A killed run is a forked child: it
starts at once, and SIGKILL leaves of it what it leaves of any process.
"""

import ast
import json
import os
import random
import signal
from pathlib import Path

import nbformat
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from notebooks import NOTEBOOKS

STEPS, EVERY = 14, 2
MOMENTS = ("after a step", "writing the model", "writing the optimizer", "writing the trainer's state")
SIZES = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child, which needs a Unix"),
]


def from_notebook(name):
    """A function as notebook 03 defines it."""
    notebook = nbformat.read(NOTEBOOKS / "03_full_fine_tuning.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and f"def {name}(" in cell.source:
            found = [node for node in ast.parse(cell.source).body if getattr(node, "name", None) == name]
            space = {"json": json, "Path": Path}
            exec(ast.unparse(found), space)
            return space[name]
    raise AssertionError(f"notebook 03 defines no {name}")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def cut(path):
    """Leave half of a file, as a process does that is killed while it writes."""
    os.truncate(path, os.path.getsize(path) // 2)


class Killed(TrainerCallback):
    """Kills its own process after a step, or in the middle of writing the next checkpoint."""

    def __init__(self, step, moment):
        self.step, self.moment = step, moment

    def on_step_end(self, args, state, control, **kwargs):
        if self.moment == "after a step" and state.global_step == self.step:
            kill()


def kill_while_writing(trainer, step, moment):
    """From this step on, the checkpoint's file of that moment is cut and the process killed."""
    write_optimizer, write_state = trainer._save_optimizer_and_scheduler, TrainerState.save_to_json

    def optimizer(folder):  # called once the model is written
        if trainer.state.global_step >= step and moment == "writing the model":
            cut(os.path.join(folder, "model.safetensors"))
            kill()
        write_optimizer(folder)
        if trainer.state.global_step >= step and moment == "writing the optimizer":
            cut(os.path.join(folder, "optimizer.pt"))
            kill()

    def state(self, path):
        write_state(self, path)
        if self.global_step >= step and moment == "writing the trainer's state":
            cut(path)
            kill()

    trainer._save_optimizer_and_scheduler, TrainerState.save_to_json = optimizer, state


def trainer_for(folder, callbacks=()):
    set_seed(0)
    draw = random.Random(0)
    rows = [{"input_ids": draw.choices(range(1, 50), k=8), "labels": draw.randrange(2)} for _ in range(40)]
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, save_steps=EVERY, logging_steps=1, learning_rate=1e-2, use_cpu=True,
        per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        BertForSequenceClassification(BertConfig(**SIZES)), arguments, train_dataset=rows, callbacks=list(callbacks)
    )  # with dropout, so that the state of the random numbers counts too
    trainer.remove_callback(PrinterCallback)
    return trainer


def outcome(trainer):
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def train_and_be_killed(folder, step, moment):
    """In a child; returns the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            trainer = trainer_for(folder, [Killed(step, moment)])
            if moment != "after a step":
                kill_while_writing(trainer, step, moment)
            trainer.train()
        finally:
            os._exit(1)  # it was not killed
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    trainer = trainer_for(tmp_path_factory.mktemp("unbroken"))
    trainer.train()
    return outcome(trainer)


DRAW = random.Random(20261123)
KILLS = [(DRAW.randint(EVERY + 1, STEPS - EVERY), MOMENTS[i % len(MOMENTS)]) for i in range(10)]
if os.environ.get("RELEASE") != "1":
    KILLS = KILLS[: len(MOMENTS)]  # each moment once


@pytest.mark.parametrize(("step", "moment"), KILLS)
def test_a_killed_training_ends_as_if_it_had_not_been(step, moment, unbroken, tmp_path):
    assert train_and_be_killed(tmp_path, step, moment) == signal.SIGKILL
    last = from_notebook("last_whole_checkpoint")(tmp_path)
    if moment == "after a step":
        assert last == get_last_checkpoint(tmp_path)
    else:  # the library would take the one that was cut short
        torn = int(Path(get_last_checkpoint(tmp_path)).name.split("-")[1])
        assert torn >= step
        assert int(Path(last).name.split("-")[1]) == torn - EVERY
    resumed = trainer_for(tmp_path)
    resumed.train(resume_from_checkpoint=last)

    losses, weights = outcome(resumed)
    assert losses == unbroken[0]
    assert len(losses) == STEPS
    assert all(torch.equal(tensor, unbroken[1][name]) for name, tensor in weights.items())


def test_no_whole_checkpoint_is_none(tmp_path):
    find = from_notebook("last_whole_checkpoint")
    assert find(tmp_path) is None
    for number, text in ((2, '{"global_step": 2'), (10, "")):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(text)
    assert find(tmp_path) is None
    for number in (4, 12):
        (tmp_path / f"checkpoint-{number}").mkdir()
    for number in (4, 8):
        (tmp_path / f"checkpoint-{number}").mkdir(exist_ok=True)
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
    assert find(tmp_path).endswith("checkpoint-8")
