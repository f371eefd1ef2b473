"""What full fine-tuning, LoRA and QLoRA of half a billion parameters cost on this GPU: memory, time, tokens a second.

    python data/recipes/gpu_reference.py                # a few minutes; data/results/gpu/{full,LoRA,QLoRA}.json
    python data/recipes/gpu_reference.py --notebooks    # also the sweep of 04, and 05 whole, on such models: hours
    python data/recipes/gpu_reference.py --model tiny-decoder --length 96 --out runs/cpu  # the same path without a GPU

The models are made from configurations and have random weights, so nothing is downloaded: their scores mean nothing,
their bytes and seconds do. A record that is there stays. Notebook 05 shows the records.
"""

import argparse
import re
import sys
import time
from pathlib import Path

import lora
import nbformat
import torch
from nbclient import NotebookClient
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    ModernBertConfig,
    PrinterCallback,
    Qwen2Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from helpers import data, env, memory, record, text

LORA = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
WAYS = {"full": (None, False), "LoRA": (LORA, False), "QLoRA": (LORA, True)}  # the adapter; whether the base has 4 bits
WARM, TIMED = 2, 10  # steps
HALF = dict(hidden_size=1280, num_hidden_layers=24, num_attention_heads=20, tie_word_embeddings=True)
SHAPES = {  # folder: configuration, class, whose tokenizer; both have 0.5B parameters with the tokenizer's 4,096 tokens
    "decoder-0.5B": (
        lambda **names: Qwen2Config(intermediate_size=4864, num_key_value_heads=4, **HALF, **names),
        AutoModelForCausalLM,
        "tiny-decoder",
    ),
    "encoder-0.5B": (
        lambda **names: ModernBertConfig(intermediate_size=3840, **HALF, **names),
        AutoModelForMaskedLM,
        "tiny-encoder",
    ),
}


def made(name):
    """The folder of a model with random weights, made when it is not there."""
    folder = env.REPOSITORY / "runs" / name
    if not (folder / "config.json").exists():
        config, model_class, other = SHAPES[name]
        tokenizer = AutoTokenizer.from_pretrained(env.model_path(other))
        config = config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        set_seed(0)
        model_class.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


class Clock(TrainerCallback):
    """When each step ended, on the wall, once the device has done its work."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        if env.device() == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def load(path, way, dtype):
    adapter, four_bit = WAYS[way]
    options = dict(dtype=dtype, device_map={"": env.device()})
    if four_bit:
        env.mend_four_bit()
        options["quantization_config"] = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    if four_bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, adapter) if adapter else model


def measure(path, way, batch, length):
    """Peak in GiB, predicted and measured; seconds of a step and tokens (padding counts) in a second."""
    dtype = torch.bfloat16 if env.device() == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = data.read(env.DATA / "titles" / "train.json").select(range(batch * (WARM + TIMED)))
    talks = data.to_messages({"train": rows}, prompt="{review} What is its title?", answer="title")
    examples = text.tokenize_chat(talks["train"], tokenizer, max_length=length)
    model, clock, measured = load(path, way, dtype), Clock(), memory.measure()
    collate = DataCollatorForSeq2Seq(tokenizer, padding="max_length", max_length=length)

    def train(steps, *callbacks):
        arguments = TrainingArguments(
            env.fresh_folder("gpu_reference"), max_steps=steps, per_device_train_batch_size=batch, logging_steps=steps,
            learning_rate=1e-4, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, collate, examples, callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    train(WARM + TIMED, clock)
    train(2, measured)
    adapter, four_bit = WAYS[way]
    quantization = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype) if four_bit else None
    guess = memory.predict(
        path, batch=batch, length=length, dtype=dtype, peft=adapter, quantization_config=quantization,
        device=env.device(),
    )  # fmt: skip
    step_s = (clock.ends[-1] - clock.ends[WARM - 1]) / TIMED
    peaks = {"peak_gib": measured.peak / 2**30, "predicted_gib": guess.peak_gib}
    return peaks | {"step_s": step_s, "tokens_per_s": batch * length / step_s, "trainable": measured.trainable}


def run_notebook(name, model):
    """Executes a notebook whole with another model and its own sweep; the copy goes to runs/."""
    notebook = nbformat.read(env.REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for setting, value in {"MODEL": model, "RERUN": True}.items():
        first.source, found = re.subn(rf"(?m)^{setting} = .*$", f"{setting} = {value!r}", first.source, count=1)
        assert found == 1, f"{name}: the first cell has no line {setting} = ..."
    place = {"metadata": {"path": str(env.REPOSITORY / "notebooks")}}
    NotebookClient(notebook, timeout=None, resources=place).execute()
    nbformat.write(notebook, env.REPOSITORY / "runs" / f"{name}-{Path(model).name}.ipynb")


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a decoder with a chat template; by default one of 0.5B is made")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", default=env.DATA / "results" / "gpu", type=Path)
    parser.add_argument("--notebooks", action="store_true")
    options = parser.parse_args(arguments)
    if env.device() != "cuda" and not options.model:
        sys.exit(
            "There is no GPU here. Name a small model to try the path: --model tiny-decoder --length 96 --out runs/cpu"
        )
    env.quiet()
    path = str(env.model_path(options.model)) if options.model else made("decoder-0.5B")
    for way in WAYS:
        if (options.out / f"{way}.json").exists():
            continue
        found = measure(path, way, options.batch, options.length)
        settings = dict(model=Path(path).name, way=way, batch=options.batch, length=options.length)
        about = dict(machine=env.machine(), versions=env.versions((*env.LIBRARIES, "bitsandbytes")))
        record.save(options.out, way, settings=settings, metrics=found, **about)
    columns = ["way", "peak_gib", "predicted_gib", "step_s", "tokens_per_s"]
    rows = [run["settings"] | run["metrics"] for run in record.load(options.out)]
    print(record.show([{key: row[key] for key in columns} for row in rows]))
    if options.notebooks:
        lora.main([made("encoder-0.5B"), "--only", "main", "rank"])
        run_notebook("05_qlora", path)


if __name__ == "__main__":
    main(sys.argv[1:])
