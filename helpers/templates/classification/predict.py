"""What the trained model says of a text, or of every row of a file.

python predict.py "one text"
python predict.py --file texts.txt --out answers.jsonl   # a text a line
python predict.py --file rows.jsonl --out answers.jsonl  # or an object a line, with "text"
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import transformers

import train

READ = ("text",)  # what a row of a .jsonl file must have
transformers.utils.logging.set_verbosity_error()  # only the answers are shown
transformers.utils.logging.disable_progress_bar()


@torch.no_grad()
def answers(model, tokenizer, config, rows, batch_size, watch=None):
    """The likeliest label of each row (or its labels, where a row has several), and all probabilities.

    Texts of like length go together. A text that is too long is cut, or with data.stride read in parts, whose
    probabilities are averaged.
    """
    labels, several = config["data"]["labels"], config["data"].get("multi_label")
    cut = dict(truncation=True, max_length=config["data"]["max_length"])
    if config["data"].get("stride"):
        cut |= dict(return_overflowing_tokens=True, stride=config["data"]["stride"])
    found = tokenizer([row["text"] for row in rows], **cut)
    part_of = found.pop("overflow_to_sample_mapping", range(len(rows)))
    order = sorted(range(len(part_of)), key=lambda i: -len(found["input_ids"][i]))
    summed, parts = (
        torch.zeros(len(rows), len(labels)),
        torch.bincount(torch.tensor(list(part_of)), minlength=len(rows)),
    )
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = tokenizer.pad({name: [ids[i] for i in places] for name, ids in found.items()}, return_tensors="pt")
        logits = model(**batch.to(model.device)).logits.float()
        probabilities = (logits.sigmoid() if several else logits.softmax(-1)).cpu()
        summed.index_add_(0, torch.tensor([part_of[i] for i in places]), probabilities)
        if watch:
            watch(start + len(places), len(order))
    made = []
    for row in (summed / parts[:, None]).tolist():
        likely = [i for i, one in enumerate(row) if one > 0.5] if several else max(range(len(row)), key=row.__getitem__)
        answer = {"predicted": [labels[i] for i in likely] if several else labels[likely]}
        answer |= {} if several else {"probability": round(row[likely], 4)}
        made.append(answer | {"probabilities": {label: round(one, 4) for label, one in zip(labels, row, strict=True)}})
    return made


def read(file):
    """The rows of a .jsonl file, or of a .txt file, a text a line."""
    if Path(file).suffix not in (".jsonl", ".txt"):
        sys.exit(f"{file} is neither .txt, with a text a line, nor .jsonl, with an object a line: make one of them.")
    try:
        lines, rows = Path(file).read_text(encoding="utf-8-sig").rstrip("\n").split("\n"), []
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
    others = (*train.PARTS, "class_weights", "written")
    data = {name: value for name, value in settings["data"].items() if name not in others}
    return {"data": data, "model": {train.MODEL[0]: Path(settings["model"][train.MODEL[0]]).name}}


def load(path):
    """The settings of a file, with the tokenizer and the model that were trained with them."""
    try:
        config = train.read_config(path)
        device = None if "quantization" in config else train.training_arguments(config).device
        tokenizer = train.load_tokenizer(config)
    except train.ConfigError as error:
        sys.exit(f"{path}, {error}")
    folder = train.HERE / config["training"]["output_dir"]
    if not train.record_file(config).exists():
        sys.exit(f"{config['training']['output_dir']} is not trained yet: run python train.py {path}")
    before = json.loads((folder / "settings.json").read_text())
    if names := train.differences(meaning(before), meaning(config)):
        sys.exit(f"{', '.join(names)} in {path} changed since the training began: restore what was there.")
    model = train.load_model(config, trained=str(folder)).eval()
    return config, tokenizer, model.to(device) if device else model


def progress(done, count):
    """A line on the terminal that tells how far it is."""
    if sys.stderr.isatty():
        print(f"\r{done} of {count}", end="\n" if done == count else "", file=sys.stderr)


def printed(lines):
    """Prints JSON lines: UTF-8 into a pipe or a file; on a console that lacks a letter, the letter's number."""
    if not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    for line in lines:
        try:
            line.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            line = json.dumps(json.loads(line))
        print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?")
    parser.add_argument("--file")
    parser.add_argument("--out")
    parser.add_argument("--config", default="config.yaml")
    parser.add_argument("--batch", "--batch-size", type=int, default=16, help="rows at a time (%(default)s)")
    parser.add_argument("--probabilities", action="store_true", help="give all of them")
    options = parser.parse_args()
    if (options.text is None) == (options.file is None):
        parser.error("give one text, or a --file")
    if options.out and Path(options.out).exists():
        parser.error(f"{options.out} is there already, and is not written over. Give --out another name.")
    rows = [{"text": options.text}] if options.text is not None else read(options.file)
    config, tokenizer, model = load(options.config)
    started = time.monotonic()
    try:
        predicted = answers(model, tokenizer, config, rows, options.batch, progress)
    except train.ConfigError as error:
        sys.exit(f"{options.config}, {error}")
    seconds = max(time.monotonic() - started, 1e-9)
    for answer in [] if options.probabilities else predicted:
        answer.pop("probabilities", None)
    lines = [json.dumps({**row, **answer}, ensure_ascii=False) for row, answer in zip(rows, predicted, strict=True)]
    if options.out:
        Path(options.out).write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
    else:
        printed(lines)
    if options.file:
        told = f"{len(rows)} rows in {seconds:.1f} s, {len(rows) / seconds:.1f} rows a second on {model.device}"
        print(told, file=sys.stderr)


if __name__ == "__main__":
    sys.stderr.reconfigure(errors="backslashreplace")
    main()
