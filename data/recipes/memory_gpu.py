"""Compares `memory.predict` for CUDA with `torch.cuda.max_memory_allocated` of real training steps, on a GPU.

    python data/recipes/memory_gpu.py          # all cases, under 8 minutes; writes data/results/memory/gpu_grid.json
    python data/recipes/memory_gpu.py --list   # only says what would run; needs no GPU

The models have the shapes of real ones and random weights, so nothing is downloaded. Predictions are made in other
processes meanwhile. Each case is run for three steps; its peak is counted from after the model was made. The workspace
that cuBLAS takes from the same allocator is measured once and subtracted; it and the raw figure are in the record. A
case that is predicted not to fit into this GPU is left out, and the record says so.
"""

import concurrent.futures
import gc
import itertools
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

import memory_grid
import peft
import torch
import transformers
from transformers import BertConfig, BitsAndBytesConfig, LlamaConfig, Qwen2Config

from helpers import env, memory

OUTPUT = Path(__file__).resolve().parents[2] / "data" / "results" / "memory" / "gpu_grid.json"
LIMIT_S = 450  # no new case is started later than this
LLAMA = dict(vocab_size=128256, max_position_embeddings=8192, tie_word_embeddings=True, num_key_value_heads=8)
MODELS = {
    "bert-base": lambda: BertConfig(),
    "0.5B": lambda: Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "1B": lambda: LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, **LLAMA
    ),
    "3B": lambda: LlamaConfig(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, **LLAMA
    ),
    "7B": lambda: LlamaConfig(),
}  # fmt: skip
PRECISIONS = {  # dtype of the weights, of autocast
    "fp32": ("float32", None),
    "autocast": ("float32", "bfloat16"),
    "bf16": ("bfloat16", None),
}
BOTH = (True, False)


def case(model, method, precision, padding, batch, length, checkpointing=False, optim="adamw_torch_fused"):
    return locals()


def grid():
    cases = [case("bert-base", *how, 16, 128) for how in itertools.product(("full", "lora"), PRECISIONS, BOTH)]
    cases += [case("bert-base", "full", precision, True, 16, 512, True) for precision in PRECISIONS]
    cases += [case("bert-base", "full", "fp32", True, 16, 128, optim=optim) for optim in ("adamw_torch", "adamw_8bit")]
    cases += [case("0.5B", *how, 4, 512) for how in itertools.product(("full", "lora"), ("autocast", "bf16"), BOTH)]
    cases += [case("0.5B", "qlora", "bf16", padding, 4, 512) for padding in BOTH]
    cases += [case("1B", *how, padding, 2, 512) for how in (("full", "bf16"), ("lora", "fp32")) for padding in BOTH]
    cases += [case("1B", *how, padding, 2, 512) for how in (("lora", "bf16"), ("qlora", "bf16")) for padding in BOTH]
    cases += [case("3B", *how, 1, 1024, True) for how in itertools.product(("full", "lora", "qlora"), ("bf16",), BOTH)]
    cases += [case("7B", *how, 1, 1024, True) for how in itertools.product(("lora", "qlora"), ("bf16",), BOTH)]
    return cases


def adapter(case):
    task = "SEQ_CLS" if case["model"] == "bert-base" else "CAUSAL_LM"
    return None if case["method"] == "full" else peft.LoraConfig(task_type=task, target_modules="all-linear")


def quantization(case):
    if case["method"] != "qlora":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def predicted(case):
    """Runs in another process: the peak, its phase and the CPU seconds it took."""
    torch.set_num_threads(1)
    env.quiet()
    started = time.process_time()
    dtype, autocast = PRECISIONS[case["precision"]]
    found = memory.predict(
        MODELS[case["model"]](), batch=case["batch"], length=case["length"], dtype=dtype, autocast=autocast,
        peft=adapter(case), quantization_config=quantization(case), padding=case["padding"], optim=case["optim"],
        activation_checkpointing=case["checkpointing"],
    )  # fmt: skip
    return dict(
        predicted=found.peak,
        predicted_reserved=found.reserved,
        phase=found.phase,
        split=found.split,
        cpu_s=round(time.process_time() - started, 1),
    )


def quantized(model, config):
    """The model with 4-bit layers, made one by one from weights that are on the GPU already."""
    import bitsandbytes as bnb

    for name, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear and name != "lm_head":
            new = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, config.bnb_4bit_compute_dtype,
                config.bnb_4bit_use_double_quant, config.bnb_4bit_quant_type, device="meta",
            )  # fmt: skip
            settings = dict(compress_statistics=True, quant_type="nf4", module=new)
            new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, **settings).to("cuda")
            new.bias = layer.bias
            model.set_submodule(name, new)
    model.is_loaded_in_4bit, model.quantization_method = True, "bitsandbytes"
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def real_model(case):
    config = MODELS[case["model"]]()
    config.use_cache = False
    auto = "SequenceClassification" if case["model"] == "bert-base" else "CausalLM"
    with torch.device("cuda"):
        dtype = getattr(torch, PRECISIONS[case["precision"]][0])
        model = getattr(transformers, f"AutoModelFor{auto}").from_config(config, dtype=dtype)
    if case["method"] == "qlora":
        model = quantized(model, quantization(case))
    if adapter(case) is not None:
        model = peft.get_peft_model(model, adapter(case))
    if case["checkpointing"]:
        model.activation_checkpointing_enable()
    return model.cuda().train()


def real_batch(case):
    ids = torch.randint(5, 1000, (case["batch"], case["length"]), device="cuda")
    batch = {"input_ids": ids}
    if case["padding"]:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][:, -3:] = 0
    classifier = case["model"] == "bert-base"
    batch["labels"] = torch.zeros(case["batch"], dtype=torch.long, device="cuda") if classifier else ids.clone()
    return batch


def train(model, batch, case, steps=3):
    parameters = [p for p in model.parameters() if p.requires_grad]
    if case["optim"] == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(parameters, lr=1e-4)
    elif case["optim"] in ("adamw_torch", "adamw_torch_fused"):
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=case["optim"] == "adamw_torch_fused")
    else:
        raise ValueError(
            f"this recipe does not train with {case['optim']!r}: adamw_torch, adamw_torch_fused, adamw_8bit"
        )
    autocast = PRECISIONS[case["precision"]][1]
    for _ in range(steps):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast is not None):
            loss = model(**batch).loss
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()


def measured(case):
    """Allocator figures of a real run, in bytes; counted from after the model is there."""
    base = emptied()
    model, batch = real_model(case), real_batch(case)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    train(model, batch, case)
    torch.cuda.synchronize()
    stats, (free, total) = torch.cuda.memory_stats(), torch.cuda.mem_get_info()
    return dict(
        allocated=stats["allocated_bytes.all.peak"] - base,
        requested=stats["requested_bytes.all.peak"],
        reserved=stats["reserved_bytes.all.peak"],
        beside_the_allocator=total - free - torch.cuda.memory_reserved(),
        before=base,
    )


def emptied():
    """Frees what is free, and returns the bytes that are still in use."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def workspace():
    """What cuBLAS takes of the allocator's memory, once the first products have run."""
    before = emptied()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(512, 512, device="cuda", dtype=dtype)
        _ = x @ x
        torch.nn.functional.linear(x, x, x[0])
    del x, _
    return emptied() - before


def overhead(steps=30):
    """Seconds a step of bert-base with and without `measure`, in turn; the median of five rounds each."""
    one = case("bert-base", "full", "autocast", True, 16, 128)
    model, batch = real_model(one), real_batch(one)
    train(model, batch, one)
    seconds = {False: [], True: []}
    for measuring in (False, True) * 5:
        torch.cuda.synchronize()
        started = time.perf_counter()
        if measuring:
            with memory.measure(model):
                train(model, batch, one, steps)
        else:
            train(model, batch, one, steps)
        torch.cuda.synchronize()
        seconds[measuring].append((time.perf_counter() - started) / steps)
    plain, watched = (statistics.median(seconds[measuring]) for measuring in (False, True))
    return dict(plain_s=plain, measured_s=watched, overhead_percent=round(100 * (watched / plain - 1), 2))


def compared(case, prediction, taken, started):
    """One row of the record: a case that was run, or why it was not."""
    row = dict(case)
    try:
        row |= prediction.result(timeout=max(1, LIMIT_S - (time.time() - started)))
    except Exception as error:
        return row | dict(left_out=f"no prediction: {type(error).__name__}: {error}"[:300])
    if row["predicted"] > 0.93 * torch.cuda.get_device_properties(0).total_memory:
        return row | dict(left_out="predicted not to fit into this GPU")
    if time.time() - started > LIMIT_S:
        return row | dict(left_out="the time was used up")
    try:
        row |= measured(case)
    except torch.OutOfMemoryError as error:
        return row | dict(left_out=f"out of memory: {error}"[:200])
    except Exception as error:
        return row | dict(left_out=f"{type(error).__name__}: {error}"[:300])
    allocated = row["allocated"] - taken + memory.WORKSPACE  # the prediction has a workspace of its own
    errors = dict(error_percent=100 * (row["predicted"] / allocated - 1))
    errors["reserved_error_percent"] = 100 * (row["predicted_reserved"] / row["reserved"] - 1)
    return row | {name: round(error, 3) for name, error in errors.items()}


def name(case):
    words = [str(case[key]) for key in ("model", "method", "precision", "optim")]
    words += [f"batch {case['batch']} length {case['length']}", "padding" if case["padding"] else "no padding"]
    return " ".join(words + ["checkpointing"] * case["checkpointing"])


def main(arguments):
    if "--list" in arguments:
        print(*map(name, grid()), f"{len(grid())} cases", sep="\n")
        return
    if not torch.cuda.is_available():
        sys.exit("This grid needs a GPU: torch.cuda.is_available() is False. data/recipes/memory_grid.py needs none.")
    warnings.filterwarnings("ignore")
    env.quiet()
    started, cases = time.time(), grid()
    workers = max(1, min(12, (os.cpu_count() or 2) - 2))
    context = multiprocessing.get_context("spawn")  # a forked process could not use torch beside CUDA
    rows = []
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        predictions = [pool.submit(predicted, case) for case in cases]
        taken = workspace()
        for case, prediction in zip(cases, predictions, strict=True):
            rows.append(compared(case, prediction, taken, started))
            row = rows[-1]
            gib = [f"{row[key] / 2**30:8.3f}" for key in ("predicted", "allocated", "reserved") if key in row]
            said = f"{row['error_percent']:+.2f} %" if "error_percent" in row else row["left_out"]
            print(f"{name(case):75}", *gib, "GiB", said, flush=True)
        pool.shutdown(cancel_futures=True)
    errors = sorted(abs(row["error_percent"]) for row in rows if "error_percent" in row)
    if not errors:
        sys.exit("No case could be compared; nothing was written.")
    metrics = dict(cases=len(errors), median_percent=statistics.median(errors), largest_percent=errors[-1])
    metrics |= dict(workspace_bytes=taken, measure_overhead=overhead())
    print(metrics)
    record = dict(
        settings=dict(task="peak bytes of training on a GPU, memory.predict against max_memory_allocated", steps=3),
        metrics=metrics,
        seconds=round(time.time() - started),
        machine=env.machine(),
        versions=env.versions(("torch", "transformers", "peft", "bitsandbytes")),
    )
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(memory_grid.text(record, rows))


if __name__ == "__main__":
    main(sys.argv[1:])
