"""A project of a large CSV file: making it and its first 20 steps, against plain `datasets` and `Trainer`.

    python tests/bench_new.py [rows]

Each side runs in processes of its own, with one thread, and is timed in CPU seconds up to its twentieth step, so that
a busy machine counts for neither. Growth is the peak of the resident memory above what it was after the imports,
of which pages of files that are mapped into memory are counted apart: the system may take those back.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench_data import make, memory

MOST_TIME, MOST_GROWTH_MIB = 1.3, 1000
STEPS = 20


def main(rows=1_000_000):
    """Prints both sides and returns (ratio of the times, largest growth in MiB)."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), rows)
        bare, making, training = (side(name, folder) for name in ("bare", "making", "training"))
    ratio = (making["cpu_s"] + training["cpu_s"]) / bare["cpu_s"]
    for name, found in {"datasets and Trainer": bare, "helpers.new": making, "train.py": training}.items():
        print(f"{name:22}{rows:>10,} rows {found['cpu_s']:7.1f} CPU s", end="  ")
        print(f"memory: +{found['growth_mib']:.0f} MiB, of which not file pages {found['own_mib']:.0f} MiB")
    growth = max(making["growth_mib"], training["growth_mib"])
    print(f"CPU time: {ratio:.2f} of the bare libraries' (at most {MOST_TIME})")
    print(f"memory: +{growth:.0f} MiB (at most {MOST_GROWTH_MIB})")
    return ratio, growth


def side(name, folder):
    quiet = {"HF_HOME": f"{folder}/{name}", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, "--side", name, folder]
    done = subprocess.run(command, env=os.environ | quiet | threads, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"cpu_s"')]
    if not lines:
        raise RuntimeError(done.stdout[-2000:] + done.stderr)
    return json.loads(lines[-1])


class Measured:
    """CPU seconds and peaks of memory since it was made."""

    def __init__(self):
        self.before = self.peaks = memory()
        self.started = time.process_time()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while True:
            self.peaks = tuple(map(max, self.peaks, memory()))
            time.sleep(0.05)

    def print_and_exit(self):
        growth, own = ((peak - start) / 2**20 for peak, start in zip(self.peaks, self.before, strict=True))
        cpu_s = time.process_time() - self.started
        print(json.dumps({"cpu_s": cpu_s, "growth_mib": growth, "own_mib": own}), flush=True)
        os._exit(0)


def run_side(name, folder):
    import runpy

    import datasets
    import sklearn.linear_model  # noqa: F401 - what train.py imports, so that it does not count as growth
    import torch
    import transformers

    from helpers import env, new

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == STEPS:
                measured.print_and_exit()

    transformers.trainer.DEFAULT_CALLBACKS.append(Stop)
    transformers.BertForSequenceClassification(transformers.BertConfig(hidden_size=16, num_attention_heads=2))
    project, model = f"{folder}/project", env.model_path("tiny-encoder")
    measured = Measured()
    if name == "making":
        new.project("classification", project, data=f"{folder}/rows.csv")
        measured.print_and_exit()
    if name == "training":
        os.chdir(project)
        sys.path.insert(0, project)
        sys.argv = ["train.py"]
        runpy.run_path("train.py", run_name="__main__")
    if name == "bare":
        datasets.disable_progress_bars()
        rows = datasets.load_dataset("csv", data_files=f"{folder}/rows.csv", split="train").class_encode_column("label")
        rows = rows.train_test_split(0.2, stratify_by_column="label", seed=0)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=128), batched=True)
        bare = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=3, dtype=torch.float32)
        settings = dict(max_steps=STEPS, per_device_train_batch_size=16, save_strategy="no", report_to="none")
        arguments = transformers.TrainingArguments(f"{folder}/bare-runs", **settings, use_cpu=True)
        transformers.Trainer(bare, arguments, train_dataset=rows["train"], processing_class=tokenizer).train()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        run_side(*sys.argv[2:])
    else:
        main(*map(int, sys.argv[1:]))
