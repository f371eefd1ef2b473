"""Predicts what others measured on GPUs and published, run by run, and records the comparison.

python data/recipes/published.py                   # what is not predicted yet; data/results/published/comparison.json
python data/recipes/published.py peft qlora        # only runs whose source and id have one of these words
python data/recipes/published.py --again           # all of them again (about six CPU minutes)

The sources with their figures, settings and addresses are data/results/published/*.json: figures and facts only. No
factor is fitted. One setting is inferred: the longest batch of PEFT's comparison, which is not published, is taken as
the length at which the run LENGTH_FROM comes out right, and that run is not scored.
"""

import dataclasses
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import memory_shapes
import peft
import torch
from transformers import AttentionInterface, AttentionMaskInterface, BitsAndBytesConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from helpers import env, memory

FOLDER = Path(__file__).resolve().parents[2] / "data" / "results" / "published"
OUTPUT = FOLDER / "comparison.json"
LENGTH, LENGTH_FROM = 641, "lora/llama-3.2-3B-rank32"  # tokens; the prediction changes by 0.17 % a token
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def adapter(settings):
    """peft's configuration from what the run published; None for full fine-tuning."""
    if not settings:
        return None
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]]
    known = {field.name for field in dataclasses.fields(kind)} - {"peft_type"}
    return kind(**{key: value for key, value in settings.items() if key in known} | {"task_type": "CAUSAL_LM"})


def nf4(compute, double):
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=compute
    )


def of_peft(run):
    return dict(
        model=memory_shapes.shape("meta-llama/Llama-3.2-3B"), batch=4, length=LENGTH, dtype="bfloat16",
        peft=adapter(run["peft"]), optim="adamw_torch", outputs_kept=True, adapter_dtype=run["adapter_dtype"],
        task="CAUSAL_LM",
    )  # fmt: skip


def expanded(module, query, key, value, attention_mask, **more):
    """SDPA with as many heads of keys as of queries, as fitcheck makes them for a kernel that knows no shared heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **more)


AttentionInterface.register("expanded", expanded)
AttentionMaskInterface.register("expanded", sdpa_mask)


def of_fitcheck(run):
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=run["r"], target_modules=ATTENTION)
    return dict(
        model=memory_shapes.shape(run["model"]), batch=run["batch"], length=run["length"], dtype="float16", peft=lora,
        quantization_config=nf4(torch.float16, double=False), optim="adamw_torch", activation_checkpointing=True,
        padding=False, outputs_kept=True, attn_implementation="expanded" if run["attention"] == "sdpa" else "eager",
    )  # fmt: skip


def of_fms(run):
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, lora_dropout=0.1, target_modules=ATTENTION)
    quantised = run["method"] == "qlora"
    return dict(
        model=memory_shapes.shape(run["model"]), batch=run["batch"], length=run["length"], dtype="bfloat16",
        peft=None if run["method"] == "full" else lora, optim="adamw_torch", activation_checkpointing=True,
        quantization_config=nf4(torch.bfloat16, double=True) if quantised else None, prepare_kbit=run["prepared"],
        autocast="bfloat16" if run["autocast"] else None, padding=False,
    )  # fmt: skip


SOURCES = {  # file: the settings of a run as arguments of predict
    "peft_method_comparison": of_peft,
    "fitcheck_t4": of_fitcheck,
    "fms_acceleration_a100": of_fms,
}


def published(run):
    """The figures of a run in GiB: what was allocated and what was reserved, as far as they are known."""
    reserved = run.get("reserved_gib") or run.get("reserved_bytes", 0) / memory.GIB
    return {key: value for key, value in (("allocated", run.get("allocated_gib")), ("reserved", reserved)) if value}


def compared(source, run):
    """One row: both figures and their errors in percent, or why the run was left out or refused."""
    row, started = dict(source=source, id=run["id"]), time.process_time()
    if "left_out" in run:
        return row | dict(left_out=run["left_out"])
    try:
        found = memory.predict(**SOURCES[source](run))
    except ValueError as error:
        return row | dict(refused=str(error))
    row |= dict(phase=found.phase, trainable=found.trainable, cpu_s=round(time.process_time() - started, 1))
    for name, value in published(run).items():
        guess = found.reserved_gib if name == "reserved" else found.peak_gib
        row |= {name: round(value, 3), f"{name}_predicted": round(guess, 3)}
        row |= {f"{name}_error_percent": round(100 * (guess / value - 1), 2)}
    if run["id"] == LENGTH_FROM:
        row["not_scored"] = "the length of all runs is inferred from this one"
    return row


def runs():
    for source in SOURCES:
        for run in json.loads((FOLDER / f"{source}.json").read_text())["runs"]:
            yield source, run


def summary(rows):
    """By source and figure: runs, median and 95th percentile of the error's size, and how many are within 2.5 %."""
    found = {}
    for source in SOURCES:
        for figure in ("allocated", "reserved"):
            key = f"{figure}_error_percent"
            errors = [row[key] for row in rows if row["source"] == source and key in row and "not_scored" not in row]
            if errors:
                sizes = sorted(map(abs, errors))
                found[f"{source} {figure}"] = dict(
                    runs=len(sizes), median_percent=round(statistics.median(sizes), 2),
                    within_2_5=sum(size <= 2.5 for size in sizes), percentile_95=sizes[int(0.95 * (len(sizes) - 1))],
                    most_below=min(errors), most_above=max(errors),
                )  # fmt: skip
    return found


def save(rows):
    settings = dict(
        task="memory.predict against published GPU measurements", peft_length=LENGTH, length_from=LENGTH_FROM
    )
    about = dict(settings=settings, metrics=summary(rows), versions=env.versions(("torch", "transformers", "peft")))
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    OUTPUT.write_text(json.dumps(about, indent=1)[:-2] + ',\n "curve": [\n' + lines + "\n ]\n}\n")


def main(arguments):
    warnings.filterwarnings("ignore")
    env.quiet()
    words = [word for word in arguments if not word.startswith("--")]
    old = json.loads(OUTPUT.read_text())["curve"] if OUTPUT.exists() else []
    rows = {(row["source"], row["id"]): row for row in old}
    wanted = {(source, run["id"]): run for source, run in runs()}
    rows = {key: rows[key] for key in wanted if key in rows}
    for (source, name), run in wanted.items():
        chosen = not words or any(word in f"{source} {name} {run}" for word in words)
        if chosen and ("--again" in arguments or (source, name) not in rows):
            rows[source, name] = compared(source, run)
            save([rows[key] for key in wanted if key in rows])
            print(rows[source, name], flush=True)
    print(json.dumps(summary(rows.values()), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
