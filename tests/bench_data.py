"""Reading, checking and tokenising a large CSV file, against the bare library.

    python tests/bench_data.py [rows]

Each side runs in a process of its own, with one thread, and is timed in CPU seconds, so that a busy machine
counts for neither; wall time is printed beside. Growth is the peak of the resident memory above what it
was after the imports. Memory-mapped pages count as resident although the system may take them back at
any time, so the part that is not file pages is printed too.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MOST_TIME, MOST_GROWTH_MIB = 1.3, 600


def main(rows=1_000_000):
    """Prints both sides and returns (ratio of the times, growth in MiB)."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), rows)
        bare, ours = (side(name, folder) for name in ("bare", "ours"))
    ratio = ours["cpu_s"] / bare["cpu_s"]
    for name, found in (("load_dataset + map", bare), ("read + check + tokenize", ours)):
        print(f"{name:25}{rows:>10,} rows {found['cpu_s']:7.1f} CPU s  {found['wall_s']:7.1f} s  {found['steps']}")
        print(f"{'':25}memory: +{found['growth_mib']:.0f} MiB, of which not file pages {found['own_mib']:.0f} MiB")
    print(f"CPU time: {ratio:.2f} of the bare library's (at most {MOST_TIME})")
    print(f"memory: +{ours['growth_mib']:.0f} MiB (at most {MOST_GROWTH_MIB})")
    return ratio, ours["growth_mib"]


def make(folder, rows):
    """A CSV file of short texts, all different, and a small BPE tokenizer trained on some of them."""
    import numpy as np
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    random = np.random.default_rng(0)
    syllables = [a + b for a in "bcdfglmnprstvwxz" for b in "aeiou"]
    words = np.array([a + b + c for a in syllables for b in syllables[::5] for c in ("", "n", "ret", "st")])
    with (folder / "rows.csv").open("w") as file:
        file.write("text,label\n")
        for start in range(0, rows, 10_000):
            for row, n in enumerate(random.integers(5, 20, min(10_000, rows - start)), start):
                text = " ".join(words[random.integers(0, len(words), n)])
                file.write(f'"{text}, {row}.",{("negative", "neutral", "positive")[row % 3]}\n')
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    with (folder / "rows.csv").open() as file:
        tokenizer.train_from_iterator((line for line, _ in zip(file, range(20_000), strict=False)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def side(name, folder):
    quiet = {"HF_HOME": f"{folder}/{name}", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, "--side", name, folder]
    done = subprocess.run(command, env=os.environ | quiet | threads, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_side(name, folder):
    import datasets
    from transformers import PreTrainedTokenizerFast

    from helpers import data, text

    file = f"{folder}/rows.csv"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="[PAD]")
    steps, peaks, stop = {}, memory(), threading.Event()
    before = peaks

    def watch():
        nonlocal peaks
        while not stop.wait(0.05):
            peaks = tuple(map(max, peaks, memory()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu = time.perf_counter(), time.process_time()

    def step(what, function):
        start = time.process_time()
        result = function()
        steps[what] = round(time.process_time() - start, 2)
        return result

    if name == "bare":
        datasets.disable_progress_bars()
        rows = step("load_dataset", lambda: datasets.load_dataset("csv", data_files=file, split="train"))
        step(
            "map",
            lambda: rows.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=128), batched=True),
        )
    else:
        rows = step("read", lambda: data.read(file))
        rows = step("check", lambda: data.check(rows))
        step("tokenize", lambda: text.tokenize(rows, tokenizer, max_length=128))
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    stop.set()
    watcher.join()
    growth, own = ((peak - start) / 2**20 for peak, start in zip(peaks, before, strict=True))
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "steps": steps, "growth_mib": growth, "own_mib": own}))


def memory():
    """Resident bytes, and those of them that are not pages of files."""
    import psutil

    found = psutil.Process().memory_info()
    return found.rss, found.rss - found.shared


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        run_side(*sys.argv[2:])
    else:
        main(*map(int, sys.argv[1:]))
