"""The broken runs of notebook 08. Each function below holds one cause: guess first, then read it.

A run gets the sound pieces that the notebook built (`kit`) and returns what the notebook asks for, one thing wrong.
`source(name)` prints a run, `check(guesses)` says which guesses are right without telling the answer.
"""

import difflib
import inspect

import numpy as np
import torch
from datasets import Value, concatenate_datasets
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    default_data_collator,
)

from helpers import metrics

CAUSES = {}  # name of a run: its cause
RUNS = {}  # name of a run: the function that makes it
LORA = dict(r=8, lora_alpha=16, target_modules="all-linear")


def cause(name, text):
    def keep(function):
        CAUSES[name], RUNS[name] = text, function
        return function

    return keep


def make(name, kit):
    """The run of this name, made of the sound pieces in `kit`."""
    return RUNS[name](kit)


def source(name):
    """The function that made a run, without its decorator."""
    print("\n".join(inspect.getsource(RUNS[name]).splitlines()[1:]))


def check(guesses):
    """One line for each guess: right, not tried yet, or look again."""
    for name, guess in guesses.items():
        right = guess == CAUSES[name]
        print(f"{name}:", "not tried yet" if guess is ... else "right" if right else f"not {guess}: look again")


# ---- Round 1: it does not learn ----


@cause("A", "learning rate")
def run_a(kit):
    return kit.trainer_for(kit.pretrained(), learning_rate=100 * kit.rate)


@cause("B", "warm-up")
def run_b(kit):
    return kit.trainer_for(kit.pretrained(), warmup_steps=500)


@cause("C", "frozen head")
def run_c(kit):
    adapter = LoraConfig(**LORA | {"target_modules": body(kit.pretrained())})  # no task_type
    model = get_peft_model(kit.pretrained(), adapter)
    return kit.trainer_for(model, learning_rate=kit.adapter_rate, num_train_epochs=1)


@cause("D", "nothing counts")
def run_d(kit):
    marker = kit.writer_tokenizer("### Response:", add_special_tokens=False)["input_ids"]

    def masked(row):
        ids = row["input_ids"]
        start = next((i + len(marker) for i in range(len(ids)) if ids[i : i + len(marker)] == marker), len(ids))
        return {"labels": [-100] * start + ids[start:]}

    return kit.writing(kit.titles["train"].map(masked), max_steps=2)


def body(model):
    """The names of the linear layers that are not the head."""
    heads = ("classifier", "score", "head", "pooler")
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not any(h in n for h in heads)]
    return sorted({name.split(".")[-1] for name in names})


# ---- Round 2: it learns the wrong thing ----


@cause("E", "overfitting")
def run_e(kit):
    n_epochs = len(kit.examples["train"]) * 6 // 128  # 6, and as many more as the sound run has more steps
    return kit.trainer_for(kit.pretrained(), kit.examples["train"].select(range(24)), num_train_epochs=n_epochs)


@cause("F", "leak")
def run_f(kit):
    half = kit.examples["train"].select(range(len(kit.examples["train"]) // 2))
    mixed = [half, kit.examples["validation"].select(range(64))]
    return kit.trainer_for(kit.pretrained(), concatenate_datasets(mixed).shuffle(seed=0), num_train_epochs=3)


@cause("G", "metric")
def run_g(kit):
    parts = {}
    for part, n_neutral, n_other in (("train", 108, 10), ("validation", 130, 10)):
        labels = np.array(kit.all_examples[part]["labels"][:])
        rows = [np.flatnonzero(labels == c)[: n_neutral if c == kit.neutral else n_other] for c in range(3)]
        parts[part] = kit.all_examples[part].select(np.concatenate(rows)).shuffle(seed=0)
    return kit.trainer_for(kit.pretrained(), parts["train"], parts["validation"], score=metrics.for_trainer("accuracy"))


@cause("H", "template")
def run_h(kit):
    """The sound writer, as a script serves it: its answers, and which of them ended by themselves."""
    prompts = [f"{review} What is its title?" for review in kit.title_rows["validation"]["review"][:]]
    plain = AutoTokenizer.from_pretrained(kit.writer_path)
    plain.chat_template = None
    return kit.texts(kit.sound_writer, plain, prompts, batch_size=40, max_new_tokens=16, return_stopped=True)


@cause("I", "never stops")
def run_i(kit):
    return new_end_run(kit, pad_token=new_end(kit))


def new_end(kit):
    """A special token that ends nothing yet."""
    tokens = kit.writer_tokenizer.all_special_tokens
    return next(token for token in reversed(tokens) if token != kit.writer_tokenizer.eos_token)


def new_end_run(kit, pad_token):
    """Answers end with a new token; the library's collator for language models hides padding tokens by their id."""
    tokenizer = AutoTokenizer.from_pretrained(kit.writer_path, eos_token=new_end(kit), pad_token=pad_token)
    rows = kit.titles["train"].select_columns(["input_ids", "attention_mask"])
    rows = rows.map(lambda row: {"input_ids": [*row["input_ids"][:-1], tokenizer.eos_token_id]})
    model = kit.writer()
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    return kit.writing(rows, DataCollatorForLanguageModeling(tokenizer, mlm=False), model, num_train_epochs=1)


# ---- Round 3: adapters and four bits ----


@cause("J", "adapter")
def run_j(kit):
    config = LoraConfig(**LORA, task_type="SEQ_CLS")
    model = get_peft_model(kit.pretrained(), config)
    model.add_adapter("mine", config)
    return kit.trainer_for(model, learning_rate=kit.adapter_rate, num_train_epochs=1)


@cause("K", "adapter overwritten")
def run_k(kit):
    """Two adapters, loaded for two tasks: (the model for titles, the model for the other task)."""
    base = kit.writer()
    titles = PeftModel.from_pretrained(base, kit.adapters / "titles", is_trainable=True)
    return titles, PeftModel.from_pretrained(base, kit.adapters / "other", is_trainable=True)


@cause("L", "merged in four bits")
def run_l(kit):
    return PeftModel.from_pretrained(in_four_bits(kit), kit.adapters / "titles").merge_and_unload()


@cause("M", "quantised head")
def run_m(kit):
    return kit.trainer_for(small_classifier(kit), learning_rate=kit.adapter_rate, num_train_epochs=1)


def four_bit(**options):
    kinds = dict(bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return BitsAndBytesConfig(load_in_4bit=True, **kinds, **options)


def in_four_bits(kit):
    options = dict(quantization_config=four_bit(), dtype=torch.float32, device_map={"": kit.device})
    return AutoModelForCausalLM.from_pretrained(kit.writer_path, **options)


def merged_in_full(kit):
    """The cure of L: the adapter is added to the base after that was brought back to fp32."""
    return PeftModel.from_pretrained(in_four_bits(kit).dequantize(), kit.adapters / "titles").merge_and_unload()


def small_classifier(kit, task_type=None, skip=None):
    config = four_bit(llm_int8_skip_modules=skip)
    options = dict(quantization_config=config, dtype=torch.float32, device_map={"": kit.device})
    model = AutoModelForSequenceClassification.from_pretrained(kit.saved, **options)
    return get_peft_model(model, LoraConfig(**LORA | {"target_modules": body(kit.pretrained())}, task_type=task_type))


# ---- Round 4: it stops with an error ----


@cause("N", "labels")
def run_n(kit):
    numbers = kit.examples["train"].cast_column("labels", Value("int64"))
    from_one = numbers.map(lambda row: {"labels": row["labels"] + 1})
    return kit.trainer_for(kit.pretrained(), from_one)


@cause("O", "vocabulary")
def run_o(kit):
    tokenizer = AutoTokenizer.from_pretrained(kit.path)
    tokenizer.add_tokens(["<product>"])
    new = tokenizer.convert_tokens_to_ids("<product>")

    def with_product(row, i):
        return {"input_ids": [*row["input_ids"][:-1], new] if i == 77 else row["input_ids"]}

    return kit.trainer_for(kit.pretrained(), kit.examples["train"].map(with_product, with_indices=True))


@cause("P", "collator")
def run_p(kit):
    return kit.trainer_for(kit.pretrained(), collator=default_data_collator)


@cause("Q", "no gradient")
def run_q(kit):
    model = get_peft_model(kit.pretrained(), LoraConfig(**LORA, task_type="SEQ_CLS"))
    model.save_pretrained(kit.adapters / "reviews")
    saved = PeftModel.from_pretrained(kit.pretrained(), kit.adapters / "reviews")
    return kit.trainer_for(saved, learning_rate=kit.adapter_rate)


# ---- Round 5: memory, time and checkpoints ----


@cause("R", "memory")
def run_r(kit):
    wide = DataCollatorForSeq2Seq(kit.writer_tokenizer, padding="max_length", max_length=128)
    return kit.writing(kit.titles["train"], wide, per_device_train_batch_size=32, max_steps=1)


@cause("S", "slow loader")
def run_s(kit):
    known = kit.reviews["train"]["text"][:]
    padded = DataCollatorWithPadding(kit.tokenizer)

    def collator(rows):
        for row in rows:  # "which review is most like this one?", asked anew for every row of every batch
            text = kit.tokenizer.decode(row["input_ids"], skip_special_tokens=True)
            max(difflib.SequenceMatcher(None, text, other).ratio() for other in known)
        return padded(rows)

    return kit.trainer_for(kit.pretrained(), collator=collator, max_steps=2)


@cause("T", "resume")
def run_t(kit):
    return kit.start("T", last=2)  # in the folder of the run before, without resume_from_checkpoint=True
