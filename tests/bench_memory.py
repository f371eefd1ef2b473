"""`python tests/bench_memory.py`: how exact and how fast predictions are, and what measuring costs. Asserts nothing."""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification, BitsAndBytesConfig, LlamaConfig

from helpers import env, memory, record

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results" / "memory"


def accuracy():
    """The tables of the committed grids: error by method and by family, in percent."""
    for name in ("cpu_grid", "gpu_grid"):
        path = RESULTS / f"{name}.json"
        if not path.exists():
            print(f"{name}: not run yet")
            continue
        found = json.loads(path.read_text())
        rows = [row for row in found["curve"] if "error_percent" in row]
        print(f"\n{name}: prediction against measurement, {found['machine']['device_name']}, {found['metrics']}")
        for by in ("method", "family" if "family" in rows[0] else "model"):
            print(record.show([_errors(by, value, rows) for value in dict.fromkeys(row[by] for row in rows)]))


def _errors(by, value, rows):
    errors = [abs(row["error_percent"]) for row in rows if row[by] == value]
    return {by: value, "cases": len(errors), "median error (%)": statistics.median(errors), "largest (%)": max(errors)}


def speed():
    """CPU seconds of a prediction, and the memory of the process that makes it."""
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    long = dict(batch=1, length=512, dtype="bfloat16", peft=lora)
    cases = {
        "bert-base, full": (BertConfig(), dict(batch=8, length=128), 5),
        "7B, LoRA": (LlamaConfig(), long, 30),
        "7B, QLoRA": (LlamaConfig(), long | dict(quantization_config=four_bit, activation_checkpointing=True), 30),
    }
    rows = []
    for name, (config, settings, wanted) in cases.items():
        started = time.process_time()
        peak = memory.predict(config, **settings).peak_gib
        rows.append({"prediction": name, "peak (GiB)": peak, "CPU s": time.process_time() - started, "wanted": wanted})
    print(record.show(rows))
    unit = 2**30 if sys.platform == "darwin" else 2**20
    print(f"memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.2f} GiB (2 wanted)")


def overhead(rounds=5, steps=4):
    """What `measure` adds to a training step: CPU seconds on a CPU, wall time on a GPU; with and without in turn."""
    device = env.device()
    clock = time.perf_counter if device == "cuda" else time.process_time
    torch.manual_seed(0)
    for name, sizes, batch in (
        ("tiny (2 layers of 128)", dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4), (8, 64)),
        ("small (4 layers of 384)", dict(hidden_size=384, num_hidden_layers=4, num_attention_heads=6), (8, 128)),
    ):
        model = BertForSequenceClassification(BertConfig(vocab_size=1000, **sizes)).to(device)
        inputs = {"input_ids": torch.ones(batch, dtype=torch.long), "labels": torch.zeros(batch[0], dtype=torch.long)}
        inputs = {key: value.to(device) for key, value in inputs.items()}
        optimizer = torch.optim.AdamW(model.parameters())
        seconds = {False: [], True: []}
        for measuring in (True, False) * (rounds + 1):
            started = clock()
            if measuring:
                with memory.measure(model):
                    _train(model, inputs, optimizer, steps, device)
            else:
                _train(model, inputs, optimizer, steps, device)
            seconds[measuring].append((clock() - started) / steps)
        plain, watched = (statistics.median(seconds[measuring][1:]) for measuring in (False, True))
        print(f"measure() on {device}, {name}: {plain * 1000:.1f} ms a step without, {watched * 1000:.1f} with: "
              f"{watched / plain - 1:+.1%}")  # fmt: skip


def _train(model, inputs, optimizer, steps, device):
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    env.quiet()
    torch.set_num_threads(1)
    accuracy()
    speed()
    overhead()
