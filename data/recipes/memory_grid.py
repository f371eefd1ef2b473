"""Compares `memory.predict` for a CPU with what torch's profiler saw a CPU's allocator do, case by case.

    python data/recipes/memory_grid.py            # all cases; writes data/results/memory/cpu_grid.json
    python data/recipes/memory_grid.py bert qlora # only the cases whose name has all of these words; writes nothing

The truth is an ordinary training loop over real tensors and real 4-bit layers, of small models with random weights. It
shares no code with the prediction, and takes three steps where the prediction takes two.
"""

import contextlib
import gc
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import peft
import torch
import transformers
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import BitsAndBytesConfig

from helpers import env, memory

OUTPUT = Path(__file__).resolve().parents[2] / "data" / "results" / "memory" / "cpu_grid.json"
SMALL = dict(vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4)
LLAMA = SMALL | dict(intermediate_size=352, num_key_value_heads=2, max_position_embeddings=512)
BERT = SMALL | dict(intermediate_size=512, max_position_embeddings=514)
SEQ2SEQ = dict(vocab_size=1000, d_model=128)
FAMILIES = {  # name: configuration class, its sizes, the task's usual model
    "bert": ("BertConfig", BERT, "AutoModelForSequenceClassification"),
    "roberta": ("RobertaConfig", BERT, "AutoModelForSequenceClassification"),
    "distilbert": (
        "DistilBertConfig",
        dict(vocab_size=1000, dim=128, n_layers=2, n_heads=4, hidden_dim=512),
        "AutoModelForSequenceClassification",
    ),
    "albert": ("AlbertConfig", BERT | dict(embedding_size=64), "AutoModelForSequenceClassification"),
    "deberta": ("DebertaV2Config", BERT, "AutoModelForSequenceClassification"),
    "modernbert": (
        "ModernBertConfig",
        SMALL | dict(num_hidden_layers=4, intermediate_size=192, pad_token_id=0, local_attention=64),
        "AutoModelForSequenceClassification",
    ),
    "t5": (
        "T5Config",
        SEQ2SEQ | dict(d_kv=32, d_ff=256, num_layers=2, num_heads=4, decoder_start_token_id=0),
        "AutoModelForSeq2SeqLM",
    ),
    "bart": (
        "BartConfig",
        SEQ2SEQ
        | dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
        | dict(encoder_ffn_dim=256, decoder_ffn_dim=256, max_position_embeddings=512),
        "AutoModelForSeq2SeqLM",
    ),
    "gpt2": ("GPT2Config", dict(vocab_size=1000, n_embd=128, n_layer=2, n_head=4), "AutoModelForCausalLM"),
    "llama": ("LlamaConfig", LLAMA, "AutoModelForCausalLM"),
    "mistral": ("MistralConfig", LLAMA, "AutoModelForCausalLM"),
    "phi": ("PhiConfig", SMALL | dict(intermediate_size=512), "AutoModelForCausalLM"),
    "qwen": ("Qwen2Config", LLAMA, "AutoModelForCausalLM"),
}
TASK_TYPES = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}
METHODS = ("full", "lora", "qlora", "prefix", "ia3")
IMPOSSIBLE = [(family, "prefix") for family in ("distilbert", "albert", "deberta", "modernbert")]  # says peft itself
USUAL = dict(batch=4, length=64, checkpointing=False, accumulation=1, padding=True)


def grid():
    """The cases: every family with every method, then other shapes of three families."""
    pairs = [pair for pair in itertools.product(FAMILIES, METHODS) if pair not in IMPOSSIBLE]
    cases = [dict(family=family, method=method, **USUAL) for family, method in pairs]
    shapes = (
        dict(batch=2, length=128),
        dict(batch=8, length=128, checkpointing=True),
        dict(checkpointing=True),
        dict(accumulation=4),
        dict(padding=False),
    )
    others = (("bert", "full"), ("t5", "lora"), ("llama", "full"), ("llama", "qlora"))
    for (family, method), shape in itertools.product(others, shapes):
        cases.append(dict(family=family, method=method) | USUAL | shape)
    return cases


def configuration(family):
    name, sizes, _ = FAMILIES[family]
    return getattr(transformers, name)(**sizes)


def peft_config(family, method):
    task = TASK_TYPES[FAMILIES[family][2]]
    if method in ("lora", "qlora"):  # DistilBERT's head has a layer that is trained whole, so "all-linear" clashes
        targets = ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"] if family == "distilbert" else "all-linear"
        return peft.LoraConfig(task_type=task, r=8, target_modules=targets)
    if method == "prefix":
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=10)
    return peft.IA3Config(task_type=task, **IA3.get(family, {})) if method == "ia3" else None


IA3 = {  # what peft has no default for
    "albert": dict(target_modules=["key", "value", "ffn_output"], feedforward_modules=["ffn_output"]),
    "distilbert": dict(target_modules=["k_lin", "v_lin", "lin2"], feedforward_modules=["lin2"]),
    "modernbert": dict(target_modules=["Wqkv", "mlp.Wo"], feedforward_modules=["mlp.Wo"]),
    "deberta": dict(target_modules=["key_proj", "value_proj", "output.dense"], feedforward_modules=["output.dense"]),
    "phi": dict(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]),
}


def quantization(family, method):
    if method != "qlora":
        return None
    heads = (
        ["classifier", "pre_classifier"] if "Classification" in FAMILIES[family][2] else None
    )  # trained, so not 4-bit
    return BitsAndBytesConfig(
        llm_int8_skip_modules=heads,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def predicted(case):
    return memory.predict(
        configuration(case["family"]),
        batch=case["batch"],
        length=case["length"],
        peft=peft_config(case["family"], case["method"]),
        quantization_config=quantization(case["family"], case["method"]),
        activation_checkpointing=case["checkpointing"],
        gradient_accumulation_steps=case["accumulation"],
        padding=case["padding"],
        device="cpu",
    )


def real_model(case):
    auto = getattr(transformers, FAMILIES[case["family"]][2])
    config = configuration(case["family"])
    config.use_cache = False
    if case["method"] == "qlora":
        with tempfile.TemporaryDirectory() as folder:  # loaded as a reader would: quantised on the way
            auto.from_config(config).save_pretrained(folder)
            model = auto.from_pretrained(
                folder,
                quantization_config=quantization(case["family"], "qlora"),
                device_map={"": "cpu"},
                dtype=torch.float32,
            )
        # What is not quantised is a view into the checkpoint file, which is mapped whole and which the profiler counts
        # whole. No training allocates that, so these few get memory of their own.
        for parameter in model.parameters():
            if type(parameter).__name__ != "Params4bit":
                parameter.data = parameter.data.clone()
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.clone()  # a new one: a view goes on holding what it is a view of
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    else:
        model = auto.from_config(config)
    config = peft_config(case["family"], case["method"])
    if config is not None:
        model = peft.get_peft_model(model, config)
    if case["checkpointing"]:
        model.activation_checkpointing_enable()
    return model.train()


def real_batch(case):
    ids = torch.randint(5, 1000, (case["batch"], case["length"]))
    batch = {"input_ids": ids}
    if case["padding"]:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][0, -3:] = 0
    classifier = "Classification" in FAMILIES[case["family"]][2]
    batch["labels"] = torch.zeros(case["batch"], dtype=torch.long) if classifier else ids.clone()
    return batch


def train(model, batch, accumulation=1, steps=3, optimizer=torch.optim.AdamW, autocast=None, **options):
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad], lr=1e-4, **options)
    for _ in range(steps):
        for _ in range(accumulation):
            with torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext():
                loss = model(**batch).loss
            (loss / accumulation).backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()


def profiled_peak(make, run):
    """Most bytes that the CPU's allocator had given out during `run(*make())`; what `make` left behind counts too."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        made = make()
        gc.collect()
        with record_function("training"):
            run(*made)
        del made
    events = list(profiler.profiler.kineto_results.events())
    start = next(event.start_ns() for event in events if event.name() == "training")
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now) if event.start_ns() >= start else peak
    return peak


def compared(case):
    """One row: the predicted and the profiled peak, and the error in percent; or why there is none."""
    row = dict(case)
    try:
        guess = predicted(case)
        row |= dict(predicted=guess.peak, phase=guess.phase, trainable=guess.trainable)
    except Exception as error:
        row["predict_error"] = f"{type(error).__name__}: {error}"[:300]
    try:
        row["profiled"] = profiled_peak(
            lambda: (real_model(case), real_batch(case)),
            lambda model, batch: train(model, batch, case["accumulation"], fused=True),
        )
    except Exception as error:
        row["real_error"] = f"{type(error).__name__}: {error}"[:300]
    if "predicted" in row and "profiled" in row:
        row["error_percent"] = round(100 * (row["predicted"] / row["profiled"] - 1), 3)
    return row


def name(case):
    words = [case["family"], case["method"], f"b{case['batch']}", f"l{case['length']}"]
    words += ["checkpointing"] * case["checkpointing"] + [f"accumulate{case['accumulation']}"]
    return " ".join(words + ["no-padding"] * (not case["padding"]))


def main(words):
    warnings.filterwarnings("ignore")
    env.quiet()
    started, rows = time.process_time(), []
    for case in grid():
        if not all(word in name(case).split() for word in words):
            continue
        rows.append(compared(case))
        row = rows[-1]
        said = (
            f"{row['predicted']:>12,} {row['profiled']:>12,} {row['error_percent']:+8.3f} %  {row['phase']}"
            if "error_percent" in row
            else "  ".join(f"{key}: {row[key]}" for key in ("predict_error", "real_error") if key in row)
        )
        print(f"{name(case):50} {said}", flush=True)
    errors = sorted(abs(row["error_percent"]) for row in rows if "error_percent" in row)
    if not errors:
        sys.exit("nothing to compare")
    summary = dict(cases=len(errors), median_percent=round(statistics.median(errors), 3), largest_percent=errors[-1])
    print(summary)
    if not words:
        settings = dict(task="peak bytes of training on a CPU, memory.predict against torch.profiler", steps=3)
        libraries = ("torch", "transformers", "peft", "bitsandbytes")
        record = dict(settings=settings, metrics=summary, seconds=round(time.process_time() - started))
        record |= dict(machine=env.machine(), versions=env.versions(libraries))
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(text(record, rows))


def text(record, rows):
    """The record as JSON, with a line for each case."""
    lines = ",\n".join("    " + json.dumps(row) for row in rows)
    return json.dumps(record, indent=2)[:-2] + f',\n  "curve": [\n{lines}\n  ]\n}}\n'


if __name__ == "__main__":
    main(sys.argv[1:])
