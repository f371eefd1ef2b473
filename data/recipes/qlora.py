"""The recorded runs of notebook 05: a base in four bits before training, LoRA against QLoRA in pairs, and in bf16.

    python data/recipes/qlora.py tiny-decoder    # an hour of one core
    python data/recipes/qlora.py smollm2         # an hour of one core
    python data/recipes/qlora.py tiny-encoder    # minutes: a classifier whose head was quantised
    python data/recipes/qlora.py configuration   # ten minutes: no training, memory predicted from published shapes

A run whose record is there is not run again, so the command goes on where it was broken off. `hits` has one digit a row
(1 = right) for each part, so that two runs can be compared row by row. A base in `four_bit` is NF4 with double
quantisation. The ways of bf16 are what notebook 05 compares: with peft's upcast of all that is not quantised to fp32
("old"), without it ("modern"), and without it and with the adapter in bf16 too ("modern, adapter bf16").
"""

import argparse
import sys
import time
from functools import cache
from pathlib import Path

import memory_shapes
import torch
from corpus import Corpus
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from helpers import data, env, generate, memory, metrics, record, text

RESULTS = env.DATA / "results" / "05_qlora"
PARTS = ("train", "validation", "test_same", "test_unseen", "test_handwritten")
TESTS = PARTS[2:]
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)  # tried on validation rows with seeds 0 to 2, tiny-decoder only
SETTINGS = {  # rows to train on and to score of each part, and as in TrainingArguments
    "tiny-decoder": dict(n_train=400, n_rows=300, num_train_epochs=2, per_device_train_batch_size=16),
    "smollm2": dict(n_train=128, n_rows=50, num_train_epochs=1, per_device_train_batch_size=8),
}
BF16 = dict(n_train=96, n_rows=150)  # bf16 is slow on most processors
RATE = {"tiny-decoder": 4e-3, "smollm2": 9e-4}  # the best of LoRA on validation rows; env.recommend of smollm2 and LoRA
SEEDS = {"tiny-decoder": range(10, 20), "smollm2": range(3)}  # those of tiny-decoder chose no rate
METHODS = ("LoRA", "QLoRA")
WAYS = ("old", "modern", "modern, adapter bf16")
SIZES = ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-14B")
SIZES += ("Qwen/Qwen3-32B", "meta-llama/Llama-3.1-70B")
LENGTHS = (1024, 2048, 4096, 8192)  # beside 512


@cache
def prepared(model):
    """The tokenizer and the conversations and examples of a model."""
    env.quiet()
    env.mend_four_bit()
    tokenizer = AutoTokenizer.from_pretrained(env.model_path(model))
    rows = {part: data.read(env.DATA / "titles" / f"{part}.json") for part in PARTS}
    talks = data.to_messages(rows, prompt="{review} What is its title?", answer="title")
    examples = {part: text.tokenize_chat(talks[part], tokenizer) for part in ("train", "validation")}
    return tokenizer, talks, examples


def four_bits(kind="nf4", compute=torch.float32):
    double = dict(bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, **double)


def loaded(model, quantization=None, dtype=torch.float32, seed=0):
    set_seed(seed)
    options = dict(dtype=dtype, device_map={"": env.device()})
    if quantization is not None:
        options["quantization_config"] = quantization
    return AutoModelForCausalLM.from_pretrained(env.model_path(model), **options)


def scored(network, model, parts, n_rows):
    """Exact match and hits of each part."""
    tokenizer, talks, _ = prepared(model)
    found, hits = {}, {}
    for part in parts:
        some = talks[part].select(range(min(n_rows, len(talks[part]))))["messages"][:]
        said = generate.texts(network, tokenizer, some, batch_size=30, max_new_tokens=16)
        right = [
            metrics.score("exact_match", [one], [talk[-1]["content"]]) for one, talk in zip(said, some, strict=True)
        ]
        found[part], hits[part] = sum(right) / len(right), "".join("01"[int(hit)] for hit in right)
    return found, {"hits": hits}


def before_point(model, base, n_rows=60):
    """Without training: the loss over answers and over documents as the tiny model read them, and right titles."""
    tokenizer, _, examples = prepared(model)
    network = loaded(model, {"fp32": None, "NF4": four_bits(), "FP4": four_bits("fp4")}[base])
    names, collate = ("input_ids", "attention_mask", "labels"), DataCollatorForSeq2Seq(tokenizer)
    answers = [{name: row[name] for name in names} for row in examples["validation"].select(range(n_rows))]
    documents = list(Corpus(99, "tasks").documents(n_rows))
    texts = tokenizer(documents, truncation=True, max_length=192)["input_ids"]
    texts = [{"input_ids": ids, "labels": ids} for ids in texts]
    found = {}
    for name, rows in {"answers": answers, "text": texts}.items():
        total, n_tokens = metrics.total_loss(network, [collate(rows[i : i + 15]) for i in range(0, len(rows), 15)])
        found |= {f"loss_{name}": total / n_tokens, f"tokens_{name}": n_tokens}
    right, more = scored(network, model, ("validation",), n_rows)
    return found | right | {"footprint_mib": network.get_memory_footprint() / 2**20}, more


def trained(network, model, learning_rate, seed, n_train, **changes):
    """Train an adapter on other rows for each seed; how the loss of the answers went."""
    tokenizer, _, examples = prepared(model)
    rows = examples["train"].shuffle(seed=seed).select(range(n_train))
    settings = dict(learning_rate=learning_rate, seed=seed, warmup_steps=0.1, use_cpu=env.device() == "cpu")
    settings |= dict(save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True)
    arguments = TrainingArguments(env.fresh_folder("05_qlora"), **settings | changes)
    Trainer(network, arguments, data_collator=DataCollatorForSeq2Seq(tokenizer), train_dataset=rows).train()
    return network


def adapter():
    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


def tuning_point(model, method, learning_rate, seed, parts=("validation",), n_train=800, n_rows=300, **changes):
    """LoRA on the base in fp32, or QLoRA on the base in NF4, all computed in fp32; scores and hits of the parts."""
    network = loaded(model, four_bits() if method == "QLoRA" else None, seed=seed)
    if method == "QLoRA":
        network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
    changes = dict(num_train_epochs=3, per_device_train_batch_size=16) | changes
    network = trained(get_peft_model(network, adapter()), model, learning_rate, seed, n_train, **changes)
    return scored(network, model, parts, n_rows)


def bf16_point(model, way, learning_rate, seed, parts, n_train, n_rows, **changes):
    """QLoRA trained on a base in bf16: with the upcast or without, the adapter in fp32 or bf16; all written in fp32."""
    network = loaded(model, four_bits(compute=torch.bfloat16), torch.bfloat16, seed)
    if way == "old":
        network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
    network = get_peft_model(network, adapter(), autocast_adapter_dtype="adapter" not in way)
    folder = env.fresh_folder("05_adapter")
    trained(network, model, learning_rate, seed, n_train, bf16=True, **changes).save_pretrained(folder)
    return scored(PeftModel.from_pretrained(loaded(model, four_bits()), folder), model, parts, n_rows)


HEADS = {"frozen in four bits": None, "left out, trained": ["classifier"]}  # what is not quantised, beside the usual


def head_point(model, head, learning_rate, seed):
    """Accuracy on the validation rows of an adapter on a four-bit encoder, whose new head is quantised or not."""
    env.mend_four_bit()
    path, tokenizer = env.fresh_folder("05_head"), AutoTokenizer.from_pretrained(env.model_path(model))
    reviews = {part: data.read(env.DATA / "reviews" / f"{part}.csv") for part in ("train", "validation")}
    reviews = text.tokenize(data.check(reviews), tokenizer, max_length=128)
    set_seed(seed)
    AutoModelForSequenceClassification.from_pretrained(env.model_path(model), num_labels=3).save_pretrained(path)
    config = BitsAndBytesConfig.from_dict(four_bits().to_dict() | {"llm_int8_skip_modules": HEADS[head]})
    options = dict(quantization_config=config, dtype=torch.float32, device_map={"": env.device()}, num_labels=3)
    network = AutoModelForSequenceClassification.from_pretrained(path, **options)
    network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
    lora = dict(r=16, lora_alpha=32, target_modules=["Wqkv", "Wo", "Wi"], task_type="SEQ_CLS" if HEADS[head] else None)
    settings = dict(learning_rate=learning_rate, num_train_epochs=3, per_device_train_batch_size=16, warmup_steps=0.1)
    settings |= dict(seed=seed, save_strategy="no", logging_steps=1, report_to="none", disable_tqdm=True)
    arguments = TrainingArguments(env.fresh_folder("05_qlora"), **settings)
    rows = reviews["train"].shuffle(seed=seed).select(range(500))
    collate = DataCollatorWithPadding(tokenizer)
    network = get_peft_model(network, LoraConfig(**lora))
    trainer = Trainer(network, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    found = trainer.predict(reviews["validation"])
    return {"validation": metrics.score("accuracy", found.predictions.argmax(-1), found.label_ids)}, {}


def fitting():
    """What is set for each way of training, beside batch 1 x 16, bf16 weights and gradient checkpointing."""
    lora, half = dict(peft=adapter()), dict(autocast="bfloat16")
    nf4 = lora | dict(quantization_config=four_bits(compute=torch.bfloat16))
    modern = nf4 | dict(prepare_kbit=False)
    return {
        "full": {},  # pure bf16: 8 bytes a weight
        "LoRA": lora | half,
        "QLoRA, old": nf4 | half,
        "QLoRA, no upcast": modern | half,
        "QLoRA, modern": modern | half | dict(optim="paged_adamw_8bit"),
        "QLoRA, modern, adapter bf16": modern | dict(optim="paged_adamw_8bit", adapter_dtype="bfloat16"),
    }


def fit_point(folder, size, way, length=512):
    """The predicted peak on a GPU and its parts, in GiB."""
    common = dict(batch=1, length=length, dtype="bfloat16", activation_checkpointing=True, padding=False)
    common |= dict(gradient_accumulation_steps=16)
    found = memory.predict(memory_shapes.shape(size), **common, **fitting()[way])
    parts = {part: value / memory.GIB for part, value in found.split.items()}
    return {"peak_gib": found.peak_gib, "reserved_gib": found.reserved_gib, **parts}, {}


def keep(model, name, run, **point):
    """Run a point and save its record, unless there is one."""
    folder = RESULTS / Path(model).name
    if (folder / f"{name}.json").exists():
        return
    started = time.process_time()
    found, more = run(model, **point)
    settings = {**point, "model": Path(model).name}
    if "learning_rate" in point or "base" in point:
        from_q4 = str(env.model_path(model)).endswith("from-Q4_1")
        settings["weights"] = "from Q4_1" if from_q4 else "as published"
    versions = env.versions((*env.LIBRARIES, "bitsandbytes"))
    about = dict(machine=env.machine(), versions=versions, cpu_s=round(time.process_time() - started))
    record.save(folder, name, settings=settings, metrics=found, **more, **about)
    print(name, {key: round(value, 3) for key, value in found.items()}, about["cpu_s"], "CPU s", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="tiny-decoder, smollm2, another model that chats, tiny-encoder or configuration")
    parser.add_argument("--only", default="", help="only records whose name begins so")
    options = parser.parse_args(arguments)
    model = options.model

    def one(name, run, **point):
        if name.replace(", ", "-").replace(" ", "-").startswith(options.only):
            keep(model, name.replace(", ", "-").replace(" ", "-"), run, **point)

    if model == "configuration":
        env.quiet()
        for size in SIZES:
            for way in fitting():
                if size == "meta-llama/Llama-3.1-8B" or way in ("full", "LoRA", "QLoRA, old", "QLoRA, modern"):
                    one(f"fit-{size.split('/')[1]}-{way}", fit_point, size=size, way=way)
        for way in ("QLoRA, old", "QLoRA, modern"):
            for length in LENGTHS:
                one(f"length-{length}-{way}", fit_point, size="meta-llama/Llama-3.1-8B", way=way, length=length)
    elif model == "tiny-encoder":
        for head in HEADS:
            for seed in range(3):
                one(f"head-{head}-{seed}", head_point, head=head, learning_rate=3e-3, seed=seed)
    else:
        runs_of_a_writer(model, one)


def runs_of_a_writer(model, one):
    rate = RATE.get(model) or env.recommend(model, "LoRA")["learning_rate"]
    common = dict(learning_rate=rate, parts=TESTS, **SETTINGS.get(model, SETTINGS["smollm2"]))
    seeds = SEEDS.get(model, SEEDS["smollm2"])
    for base in ("fp32", "NF4", "FP4"):
        one(f"before-{base}", before_point, base=base, n_rows=60 if model == "tiny-decoder" else 30)
    for method in METHODS if model == "tiny-decoder" else ():
        for tried in RATES:
            for seed in range(3):
                one(f"rate-{method}-{tried:g}-{seed}", tuning_point, method=method, learning_rate=tried, seed=seed)
    for seed in seeds:
        for method in METHODS:
            one(f"parts-{method}-{rate:g}-{seed}", tuning_point, method=method, seed=seed, **common)
    for seed in seeds[:5] if model == "tiny-decoder" else ():
        for way in WAYS:
            one(f"bf16-{way}-{seed}", bf16_point, way=way, seed=seed, **common | BF16)


if __name__ == "__main__":
    sys.exit(main())
