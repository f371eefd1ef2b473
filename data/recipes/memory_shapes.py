"""The shapes of models that people fine-tune, from their published configurations (config.json on the Hub).

python data/recipes/memory_shapes.py            # predicts the table of recipes on them; resumes where it stopped
python data/recipes/memory_shapes.py --list     # only says what would be predicted

The table is data/results/memory/recipes.json: LoRA in bf16 and QLoRA with and without the upcast to fp32, at batch 1
and 512 tokens with gradient checkpointing, against the memory that cards have (`memory.CARDS`).
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from helpers import env, memory

OUTPUT = Path(__file__).resolve().parents[2] / "data" / "results" / "memory" / "recipes.json"
LLAMA = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LLAMA += ("num_key_value_heads", "head_dim", "tie_word_embeddings")
SHAPES = {  # name on the Hub: configuration class, the sizes in the order of LLAMA
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("Llama", 32000, 2048, 5632, 22, 32, 4, 64, False),
    "HuggingFaceTB/SmolLM2-135M": ("Llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "HuggingFaceTB/SmolLM2-360M": ("Llama", 49152, 960, 2560, 32, 15, 5, 64, True),
    "HuggingFaceTB/SmolLM2-1.7B": ("Llama", 49152, 2048, 8192, 24, 32, 32, 64, True),
    "deepseek-ai/deepseek-coder-1.3b-instruct": ("Llama", 32256, 2048, 5504, 24, 16, 16, 128, False),
    "meta-llama/Llama-3.2-1B": ("Llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "meta-llama/Llama-3.2-3B": ("Llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "meta-llama/Llama-3.1-8B": ("Llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "meta-llama/Llama-3.1-70B": ("Llama", 128256, 8192, 28672, 80, 64, 8, 128, False),
    "mistralai/Mistral-7B-v0.1": ("Mistral", 32000, 4096, 14336, 32, 32, 8, 128, False),
    "mistralai/Mistral-7B-v0.3": ("Mistral", 32768, 4096, 14336, 32, 32, 8, 128, False),
    "Qwen/Qwen2.5-1.5B": ("Qwen2", 151936, 1536, 8960, 28, 12, 2, 128, True),
    "Qwen/Qwen2.5-7B": ("Qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False),
    "Qwen/Qwen3-0.6B": ("Qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen/Qwen3-1.7B": ("Qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen/Qwen3-4B": ("Qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "Qwen/Qwen3-8B": ("Qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
    "Qwen/Qwen3-14B": ("Qwen3", 151936, 5120, 17408, 40, 40, 8, 128, False),
    "Qwen/Qwen3-32B": ("Qwen3", 151936, 5120, 25600, 64, 64, 8, 128, False),
    "google/gemma-2-2b": ("Gemma2", 256000, 2304, 9216, 26, 8, 4, 256, True),
    "google/gemma-2-9b": ("Gemma2", 256000, 3584, 14336, 42, 16, 8, 256, True),
    "microsoft/phi-4": ("Phi3", 100352, 5120, 17920, 40, 40, 10, 128, False),
    "meta-llama/Llama-2-7b-hf": ("Llama", 32000, 4096, 11008, 32, 32, 32, 128, False),
    "meta-llama/Llama-2-13b-hf": ("Llama", 32000, 5120, 13824, 40, 40, 40, 128, False),
    "Qwen/Qwen-1_8B-Chat": ("Qwen2", 151936, 2048, 5504, 24, 16, 16, 128, False),  # Qwen 1, as the nearest class
    "Qwen/Qwen-7B-Chat": ("Qwen2", 151936, 4096, 11008, 32, 32, 32, 128, False),
    "Qwen/Qwen-14B-Chat": ("Qwen2", 152064, 5120, 13696, 40, 40, 40, 128, False),
    "microsoft/phi-1_5": ("Phi", 51200, 2048, 8192, 24, 32, 32, 64, False),
    "ibm/PowerLM-3b": ("Granite", 49152, 2304, 9216, 40, 36, 36, 64, True),
}
RENAMED = {"Mistral-7B-Instruct-v0.3": "Mistral-7B-v0.3"}


def shape(name):
    """The configuration of a model by its name on the Hub, also of its tuned one; `KeyError` if SHAPES lacks it."""
    name = name.replace("-Coder-", "-").removesuffix("-Instruct") if name not in SHAPES else name
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    family, *sizes = SHAPES[name]
    settings = dict(zip(LLAMA, sizes, strict=True)) | dict(max_position_embeddings=8192)
    if family == "Phi3":
        settings["pad_token_id"] = 0
    if family == "Mistral":
        settings["sliding_window"] = None
    return getattr(transformers, f"{family}Config")(**settings)


NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
USUAL = dict(batch=1, length=512, dtype="bfloat16", activation_checkpointing=True, padding=False)
LORA = dict(peft=LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
QLORA = LORA | dict(quantization_config=NF4)
RECIPES = {  # what is set, beside USUAL
    "LoRA bf16": LORA,
    "QLoRA, prepared (fp32)": QLORA,
    "QLoRA": QLORA | dict(prepare_kbit=False),
    "QLoRA, adapters bf16, paged 8-bit AdamW": QLORA
    | dict(prepare_kbit=False, adapter_dtype="bfloat16", optim="paged_adamw_8bit"),
}
OLD = ("meta-llama/Llama-2-", "microsoft/phi-1_5")  # only in the published comparison
NAMES = [name for name in SHAPES if name.split("/")[0] in ("meta-llama", "google", "microsoft")]
NAMES = [name for name in NAMES if not name.startswith(OLD)]
NAMES += [name for name in SHAPES if "Qwen3" in name] + ["mistralai/Mistral-7B-v0.3"]


def main(arguments):
    warnings.filterwarnings("ignore")
    env.quiet()
    record = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"curve": []}
    rows = {(row["model"], row["recipe"]): row for row in record["curve"]}
    for name in sorted(NAMES, key=lambda name: SHAPES[name][2] * SHAPES[name][4]):
        for recipe, settings in RECIPES.items():
            if "--list" in arguments or (name, recipe) in rows:
                print(name, recipe, "" if (name, recipe) in rows else "to do")
                continue
            found = memory.predict(shape(name), **USUAL, **settings)
            fits = [card for card in memory.CARDS if memory.fits(found, card, suggest=False).answer == "yes"]
            rows[name, recipe] = dict(
                model=name, recipe=recipe, peak_gib=round(found.peak_gib, 2), reserved_gib=round(found.reserved_gib, 2),
                weights_gib=round((found.split["weights"] + found.split["quantisation constants"]) / memory.GIB, 2),
                smallest_card=fits[0] if fits else None,
            )  # fmt: skip
            print(rows[name, recipe], flush=True)
            about = dict(settings=dict(batch=1, length=512, rank=16, targets="all-linear", checkpointing=True))
            about["versions"] = env.versions(("torch", "transformers", "peft", "bitsandbytes"))
            lines = ",\n".join("  " + json.dumps(row) for row in rows.values())
            OUTPUT.write_text(json.dumps(about, indent=1)[:-2] + ',\n "curve": [\n' + lines + "\n ]\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
