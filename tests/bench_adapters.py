"""`python tests/bench_adapters.py`: switching against loading, and mixed, grouped and single batches, by base size.

Prints times and requests a second; asserts nothing. CPU seconds on a CPU, so that a busy machine counts for no side.
The bases are random: only the time counts. Under a minute.
"""

import statistics
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


def base_of(hidden, folder):
    config = LlamaConfig(
        vocab_size=4096, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=4, num_attention_heads=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).to(env.device()).eval()


def read(model):
    """`from_pretrained` maps the file, and reads a weight when it is first used."""
    return sum(weights.sum() for weights in model.parameters())


def measured(hidden, n_adapters=8):
    """Milliseconds of a switch and of a load, and requests a second of one forward pass, for one size of base."""
    with tempfile.TemporaryDirectory() as folder:
        model = peft.get_peft_model(base_of(hidden, folder), peft.LoraConfig(**LORA), adapter_name="0").eval()
        for number in range(1, n_adapters):
            model.add_adapter(str(number), peft.LoraConfig(**LORA))
        names = [str(number % n_adapters) for number in range(ROWS)]
        switch = median(lambda: [model.set_adapter(name) for name in names]) / ROWS
        load = median(lambda: read(AutoModelForCausalLM.from_pretrained(folder)))
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
    return {"hidden": hidden, "switch, ms": 1000 * switch, "load, ms": 1000 * load, "times": load / switch} | {
        f"{way}, requests/s": ROWS / seconds for way, seconds in speeds.items()
    }


def main():
    env.quiet()
    print(f"{ROWS} requests of {LENGTH} tokens, 8 adapters of rank 8, 4 layers")
    print(record.show([measured(hidden) for hidden in (128, 512, 1024)]))


if __name__ == "__main__":
    main()
