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

READ = ("text",)  # only: classification
READ = ("tokens", "text")  # only: tokens
READ = ("messages", "text")  # only: generation
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
            yield {"predicted": config["data"]["labels"][label], "probability": round(sure, 4)}


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
            yield {"tokens": sentence, "predicted": tags}


# end
# only: generation
def answers(model, tokenizer, config, rows, batch_size):
    """What the model writes; of a conversation that ends with an answer, that answer is left off."""
    talks = [row.get("messages") or [{"role": "user", "content": row["text"]}] for row in rows]
    talks = [talk[:-1] if talk[-1]["role"] == "assistant" else talk for talk in talks]
    for text in train.write(model, tokenizer, config, talks, batch_size):
        yield {"predicted": text}


# end
def read(file):
    """The rows of a .jsonl file, or of a .txt file, a text a line."""
    if Path(file).suffix not in (".jsonl", ".txt"):
        sys.exit(f"{file} is neither .txt, with a text a line, nor .jsonl, with an object a line: make one of them.")
    try:
        lines, rows = Path(file).read_text(encoding="utf-8").rstrip("\n").split("\n"), []
    except (OSError, UnicodeError) as error:
        sys.exit(f"{file} cannot be read: {error}")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line) if file.endswith(".jsonl") else {"text": line if line.strip() else ""})
        except ValueError as error:
            sys.exit(f"{file}, line {number} is no JSON: {error}")
        if not (isinstance(rows[-1], dict) and any(rows[-1].get(name) for name in READ)):
            sys.exit(f"{file}, line {number} has no {' or '.join(READ)}: {line[:60]!r}. Correct it, or leave it out.")
    return rows


def meaning(settings):
    """The settings that give answers their meaning; where the base lies, and the rows it was trained on, do not."""
    data = {name: value for name, value in settings["data"].items() if name not in train.PARTS}
    return {"data": data, "model": {train.MODEL[0]: Path(settings["model"][train.MODEL[0]]).name}}


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
    rows = [{"text": asked.text}] if asked.text is not None else read(asked.file)
    try:
        config = train.read_config(asked.config)
        device = None if "quantization" in config else train.training_arguments(config).device
    except train.ConfigError as error:
        sys.exit(f"{asked.config}, {error}")
    if not train.record_file(config).exists():
        sys.exit(f"{config['training']['output_dir']} is not trained yet: run python train.py {asked.config}")
    folder, tokenizer = train.HERE / config["training"]["output_dir"], train.load_tokenizer(config)
    before = json.loads((folder / "settings.json").read_text())
    if names := train.differences(meaning(before), meaning(config)):
        sys.exit(f"{', '.join(names)} in {asked.config} changed since the training began: restore what was there.")
    model = train.load_model(config, trained=str(folder)).eval()
    if device:
        model.to(device)
    made = [{**row, **answer} for row, answer in zip(rows, answers(model, tokenizer, config, rows, asked.batch_size))]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    if asked.out:
        Path(asked.out).write_text(lines, encoding="utf-8")
    else:
        print(lines, end="")


if __name__ == "__main__":
    main()
