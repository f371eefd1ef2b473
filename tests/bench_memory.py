"""`python tests/bench_memory.py`: how exact and how fast predictions are, and what measuring costs.

python tests/bench_memory.py            # all three, under 5 minutes; writes speed.json and overhead.json
python tests/bench_memory.py accuracy   # or speed, or overhead
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification, BitsAndBytesConfig

from helpers import env, memory, record

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data" / "recipes"))
import memory_shapes

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results" / "memory"
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
LONG = dict(batch=1, length=512, dtype="bfloat16", peft=LORA)
QLORA = dict(quantization_config=NF4, activation_checkpointing=True)
PREDICTIONS = {  # configuration, settings, CPU seconds that it may take
    "bert-base, full": (BertConfig(), dict(batch=8, length=128), 5),
    "8B, LoRA": (memory_shapes.shape("meta-llama/Llama-3.1-8B"), LONG, 6),
    "8B, QLoRA": (memory_shapes.shape("meta-llama/Llama-3.1-8B"), LONG | QLORA, 6),
}
RESIDENT_GIB = 2  # the process that predicts may take so much


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
    """CPU seconds of a prediction and the memory of the process that makes it, a fresh one each."""
    rows = []
    for name, (_, settings, limit) in PREDICTIONS.items():
        call = [sys.executable, __file__, "predict", name]
        found = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        shape = {key: settings[key] for key in ("batch", "length")}
        rows.append({"prediction": name, **shape, **found, "cpu_s_limit": limit, "resident_gib_limit": RESIDENT_GIB})
    print(record.show(rows))
    within = all(row["cpu_s"] <= row["cpu_s_limit"] and row["resident_gib"] <= RESIDENT_GIB for row in rows)
    save("speed", "one prediction in a fresh process", dict(within_limits=within), rows)
    if not within:
        sys.exit("A prediction took more CPU seconds or more memory than its limit.")


def predict(name):
    """What one prediction takes: the first of its process, libraries loaded before; the second has nothing to load."""
    before, seconds = resident_gib(), []
    for _ in range(2):
        started = time.process_time()
        peak = memory.predict(PREDICTIONS[name][0], **PREDICTIONS[name][1]).peak_gib
        seconds.append(round(time.process_time() - started, 2))
    found = dict(predicted_gib=round(peak, 3), cpu_s=seconds[0], cpu_s_again=seconds[1])
    print(json.dumps(found | dict(libraries_gib=round(before, 2), resident_gib=round(resident_gib(), 2))))


def resident_gib():
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def overhead(rounds=11, steps=4):
    """What `measure` adds to a training step: CPU seconds on a CPU, wall time on a GPU; with and without in turn."""
    device = env.device()
    clock = time.perf_counter if device == "cuda" else time.process_time
    torch.manual_seed(0)
    rows = []
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
            seconds[measuring].append(1000 * (clock() - started) / steps)
        plain, watched = seconds[False][1:], seconds[True][1:]  # the first round of each is slow
        shares = sorted(b / a - 1 for a, b in zip(plain, watched, strict=True))
        row = {"model": name, "batch": batch[0], "length": batch[1], "ms_without": statistics.median(plain)}
        row |= {"ms_with": statistics.median(watched), "added": statistics.median(shares)}
        rows.append(row | {"added_least": shares[0], "added_most": shares[-1]})
    print(record.show(rows, dict.fromkeys(("added", "added_least", "added_most"), "+.1%") | {"ms_without": ".1f"}))
    about = dict(rounds=rounds, steps=steps, clock="CPU time" if device != "cuda" else "wall time")
    save("overhead", f"measure() on {device}, with and without in turn", dict(added=rows[-1]["added"]), rows, **about)


def _train(model, inputs, optimizer, steps, device):
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()


def save(name, what, metrics, rows, **settings):
    """One committed record; the one before it is replaced."""
    (RESULTS / f"{name}.json").unlink(missing_ok=True)
    about = dict(machine=env.machine(), versions=env.versions(("torch", "transformers", "peft", "bitsandbytes")))
    record.save(RESULTS, name, settings=dict(what=what, threads=1, **settings), metrics=metrics, curve=rows, **about)


if __name__ == "__main__":
    env.quiet()
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["predict"]:
        predict(sys.argv[2])
    else:
        for part in sys.argv[1:] or ("accuracy", "speed", "overhead"):
            {"accuracy": accuracy, "speed": speed, "overhead": overhead}[part]()
