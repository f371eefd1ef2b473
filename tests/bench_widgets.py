"""`python tests/bench_widgets.py`: what the live curve of a tuning panel costs, and how soon Stop ends a run.

Prints, asserts nothing. Expected: at most 5 % of the processor time of a run, four drawings a second or more, 0.5 s.
The steps take a few ms each, so that the share of the drawing is the highest that a reader can meet.
"""

import os
import tempfile
import time

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from helpers import env, widgets

ROWS = [{"input_ids": torch.arange(16) + i % 7, "labels": torch.tensor(i % 7 % 2)} for i in range(64)]
SIZES = dict(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def train(epochs=2, seed=0, callbacks=()):
    set_seed(seed)
    arguments = TrainingArguments(
        "out", num_train_epochs=epochs, logging_steps=2, save_strategy="no", report_to="none", disable_tqdm=True
    )
    model = BertForSequenceClassification(BertConfig(**SIZES))
    trainer = Trainer(model, arguments, train_dataset=ROWS, callbacks=list(callbacks))
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def drawing(seconds=10, earlier=3):
    panel = widgets.tune(train, folder="runs", epochs=(1, 5000))
    for _ in range(earlier):  # what the first run imports is not its own time either
        panel.start(epochs=20).wait()
    drawing_s, drawings, cpu, wall = panel.drawing_s, panel.drawings, time.process_time(), time.monotonic()
    panel.start(epochs=5000).wait(seconds)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    drawing_s, drawings = panel.drawing_s - drawing_s, panel.drawings - drawings
    pressed = time.monotonic()
    panel.stop()
    panel.wait()
    stopped = time.monotonic() - pressed
    print(f"live curve: {drawing_s / cpu:.1%} of the processor time, {1000 * drawing_s / drawings:.1f} ms a drawing,")
    print(f"{drawings / wall:.1f} a second with {earlier} earlier runs in grey; Stop ended the run in {stopped:.2f} s")


if __name__ == "__main__":
    env.quiet()
    os.chdir(tempfile.mkdtemp())
    drawing()
