"""What NF4 quantisation does to the decoder's loss on text that it has not read: one record.

python data/recipes/four_bit_loss.py    # data/results/models/tiny-decoder-nf4.json; a record that is there stays
"""

import torch
from corpus import Corpus
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorForSeq2Seq

from helpers import env, metrics, record

RESULTS = env.DATA / "results" / "models"
SETTINGS = dict(model="tiny-decoder", documents=500, seed=99, mixture="tasks", quant_type="nf4", compute="float32")


def main():
    env.quiet()
    if (RESULTS / "tiny-decoder-nf4.json").exists():
        raise SystemExit(f"{RESULTS.name}/tiny-decoder-nf4.json is there. Delete it to measure again.")
    env.mend_four_bit()  # on some processors the library computes such layers wrong
    path = env.model_path(SETTINGS["model"])
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = list(Corpus(SETTINGS["seed"], SETTINGS["mixture"]).documents(SETTINGS["documents"]))
    rows = [{"input_ids": ids, "labels": ids} for ids in tokenizer(texts, truncation=True, max_length=192)["input_ids"]]
    collate = DataCollatorForSeq2Seq(tokenizer)
    batches = [collate(rows[i : i + 25]) for i in range(0, len(rows), 25)]
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    models = {"fp32": {}, "nf4": dict(quantization_config=nf4, device_map={"": env.device()})}
    found = {}
    for name, options in models.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
        total, n_tokens = metrics.total_loss(model, batches)
        found |= {f"loss_{name}": total / n_tokens, f"bytes_{name}": model.get_memory_footprint()}
    found["rise"] = found["loss_nf4"] / found["loss_fp32"] - 1
    about = dict(machine=env.machine(), versions=env.versions((*env.LIBRARIES, "bitsandbytes")))
    record.save(RESULTS, "tiny-decoder-nf4", settings=SETTINGS | {"tokens": n_tokens}, metrics=found, **about)
    print(f"loss {found['loss_fp32']:.4f} in fp32, {found['loss_nf4']:.4f} in NF4: {found['rise']:+.2%}")


if __name__ == "__main__":
    main()
