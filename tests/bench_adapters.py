"""`python tests/bench_adapters.py`: switching against loading, and mixed, grouped and single batches, by base size.

Prints times and requests a second; asserts nothing. CPU seconds on a CPU, so that a busy machine counts for no side.
The bases are random or zeros: only the time counts. Some of them have the shapes of real models. Some two minutes;
`python tests/bench_adapters.py 7B` does the switching for that shape, which needs 16 GiB of memory and of disk.
"""

import statistics
import sys
import tempfile

import peft
import torch
from bench_generation import clock
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers import env, record

LORA = dict(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
ROWS, LENGTH = 32, 32


def median(action, repeats=5):
    found = []
    for _ in range(repeats):
        started = clock()
        action()
        found.append(clock() - started)
    return statistics.median(found)


SMALL = dict(vocab_size=4096, num_hidden_layers=4, num_attention_heads=4)
WIDTHS = (128, 512, 1024)
BASES = {f"{wide} wide": SMALL | dict(hidden_size=wide, intermediate_size=2 * wide) for wide in WIDTHS}
REAL = {
    "135M": dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                 num_key_value_heads=3, tie_word_embeddings=True),
    "1.2B": dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                 num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True, dtype="bfloat16"),
}  # fmt: skip
LARGE = {"7B": dict(dtype="bfloat16")}


def served(sizes, folder, n_adapters):
    """One base with some adapters; base and first adapter are in the folder too."""
    config = LlamaConfig(**sizes)
    with torch.device("meta" if sizes in LARGE.values() else "cpu"):  # random numbers for 7B would take minutes
        base = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    if base.device.type == "meta":
        base = base.to_empty(device="cpu")
        for weights in base.parameters():
            weights.data.zero_()
    base.save_pretrained(f"{folder}/base")
    model = peft.get_peft_model(base.to(env.device()), peft.LoraConfig(**LORA), adapter_name="0").eval()
    model.save_pretrained(folder)
    for number in range(1, n_adapters):
        model.add_adapter(str(number), peft.LoraConfig(**LORA))
    return model


def loaded(folder):
    base = AutoModelForCausalLM.from_pretrained(f"{folder}/base").to(env.device())
    return peft.PeftModel.from_pretrained(base, f"{folder}/0").eval()


def read(model):
    """`from_pretrained` maps the file, and reads a weight when it is first used."""
    return sum(weights.sum() for weights in model.parameters())


def switch_s(model, n_adapters):
    names = [str(number % n_adapters) for number in range(ROWS)]
    return median(lambda: [model.set_adapter(adapter) for adapter in names]) / ROWS


def switching(name, sizes, n_adapters):
    """Milliseconds of a switch, and of loading base and adapter until every weight was read."""
    with tempfile.TemporaryDirectory() as folder:
        switch = switch_s(served(sizes, folder, n_adapters), n_adapters)
        load = median(lambda: read(loaded(folder)))
    times = {"switch, ms": 1000 * switch, "load, ms": 1000 * load, "times": load / switch}
    return {"base": name, "adapters": n_adapters} | times


def batches(name, sizes, n_adapters=8):
    """Requests a second of one forward pass."""
    with tempfile.TemporaryDirectory() as folder:
        model = served(sizes, folder, n_adapters)
    names = [str(number % n_adapters) for number in range(ROWS)]
    ids = torch.randint(5, 4096, (ROWS, LENGTH), device=env.device())
    groups = {name: [row for row, wanted in enumerate(names) if wanted == name] for name in set(names)}

    @torch.no_grad()
    def grouped():
        for name, numbers in groups.items():
            model.set_adapter(name)
            model(ids[numbers])

    with torch.no_grad():
        one = median(lambda: model(ids, adapter_names=["0"] * ROWS))
        mixed = median(lambda: model(ids, adapter_names=names))
    speeds = {"one adapter": one, "mixed": mixed, "grouped": median(grouped)}
    return {"base": name} | {f"{way}, requests/s": ROWS / seconds for way, seconds in speeds.items()}


def main(*large):
    env.quiet()
    bases = {name: LARGE[name] for name in large} or BASES | REAL
    print(record.show([switching(name, sizes, n) for name, sizes in bases.items() for n in (1, 8)]))
    if large:
        return
    print(f"\n{ROWS} requests of {LENGTH} tokens, 8 adapters of rank 8, 4 layers")
    print(record.show([batches(name, sizes) for name, sizes in BASES.items()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
