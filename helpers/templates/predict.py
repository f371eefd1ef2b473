"""What the trained model says of a text, or of every row of a file.

python predict.py "one text"
python predict.py --file texts.txt --out answers.jsonl   # a text a line
python predict.py --file rows.jsonl --out answers.jsonl   # or an object, with "text"  # only: classification
python predict.py --file rows.jsonl --out answers.jsonl   # or an object, with "tokens"  # only: tokens
python predict.py --file rows.jsonl --out answers.jsonl   # or an object, with "messages"  # only: generation
"""

import argparse
import json
import sys
from pathlib import Path

import torch  # only: classification, tokens
import transformers

import train

transformers.utils.logging.set_verbosity_error()  # only the answers are shown
transformers.utils.logging.disable_progress_bar()


# only: classification
@torch.no_grad()
def answers(model, tokenizer, config, rows, batch_size):
    """The likeliest label of each row, and how sure the model is."""
    cut = dict(truncation=True, max_length=config["data"]["max_length"], padding=True, return_tensors="pt")
    for start in range(0, len(rows), batch_size):
        batch = tokenizer([row["text"] for row in rows[start : start + batch_size]], **cut).to(model.device)
        found = model(**batch).logits.float().softmax(-1).max(-1)
        for label, sure in zip(found.indices.tolist(), found.values.tolist()):
            yield {"label": config["data"]["labels"][label], "probability": round(sure, 4)}


# end
# only: tokens
@torch.no_grad()
def answers(model, tokenizer, config, rows, batch_size):
    """A tag for each word: the likeliest one of its first token; a word that was cut off has none."""
    cut = dict(truncation=True, max_length=config["data"]["max_length"], padding=True, return_tensors="pt")
    for start in range(0, len(rows), batch_size):
        words = [row.get("tokens") or row["text"].split() for row in rows[start : start + batch_size]]
        batch = tokenizer(words, is_split_into_words=True, **cut)
        found = model(**batch.to(model.device)).logits.argmax(-1).tolist()
        for i, (sentence, numbers) in enumerate(zip(words, found)):
            tags = [None] * len(sentence)
            for number, word in reversed(list(zip(numbers, batch.word_ids(i)))):  # the first token of a word comes last
                if word is not None:
                    tags[word] = config["data"]["labels"][number]
            yield {"tokens": sentence, "tags": tags}


# end
# only: generation
def answers(model, tokenizer, config, rows, batch_size):
    """What the model writes; of a conversation that ends with an answer, that answer is left off."""
    talks = [row.get("messages") or [{"role": "user", "content": row["text"]}] for row in rows]
    talks = [talk[:-1] if talk[-1]["role"] == "assistant" else talk for talk in talks]
    for text in train.write(model, tokenizer, config, talks, batch_size):
        yield {"answer": text}


# end
def read(file):
    """The rows of a .jsonl file, or a row for each line of any other one."""
    lines = [line for line in Path(file).read_text(encoding="utf-8").split("\n") if line.strip()]
    return [json.loads(line) if file.endswith(".jsonl") else {"text": line} for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?")
    parser.add_argument("--file")
    parser.add_argument("--out")
    parser.add_argument("--config", default="config.yaml")
    parser.add_argument("--batch-size", type=int, default=16)
    asked = parser.parse_args()
    if (asked.text is None) == (asked.file is None):
        parser.error("give one text, or a --file")
    if asked.out and Path(asked.out).exists():
        parser.error(f"{asked.out} is there already, and is not written over. Give --out another name.")
    config = train.read_config(asked.config)
    if not train.record_file(config).exists():
        sys.exit(f"{config['training']['output_dir']} is not trained yet: run python train.py {asked.config}")
    folder, tokenizer = train.HERE / config["training"]["output_dir"], train.load_tokenizer(config)
    model = train.load_model(config, trained=str(folder)).eval()
    if "quantization" not in config:
        model.to(train.training_arguments(config).device)
    rows = [{"text": asked.text}] if asked.text is not None else read(asked.file)
    made = [{**row, **answer} for row, answer in zip(rows, answers(model, tokenizer, config, rows, asked.batch_size))]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    if asked.out:
        Path(asked.out).write_text(lines, encoding="utf-8")
    else:
        print(lines, end="")


if __name__ == "__main__":
    main()
