"""`preflight.check`: names each broken run, is silent on the set-ups of the notebooks, and leaves a model as it was.

The broken runs are those of notebook 08 and a few more, each broken in one way only; so the report has one problem, of
the right name, and its sentence says what is needed to mend it.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import random
import re
import sys
import warnings

import nbformat
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from test_take_home import messages, run_alone, with_settings
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, EarlyStoppingCallback, TrainingArguments

from helpers import data, env, metrics, preflight, text
from notebooks import NOTEBOOKS, code_cells, tagged

ENCODER, DECODER = env.model_path("tiny-encoder"), env.model_path("tiny-decoder")
ASKED_FOR = inspect.signature(preflight.check).parameters
LORA = dict(r=4, target_modules=["Wqkv"])
ADAPTERS = env.DATA / "models" / "adapters"


@functools.cache
def tokenizer(path):
    return transformers.AutoTokenizer.from_pretrained(path)


@functools.cache
def reviews(part):
    rows = data.check({name: data.read(env.DATA / "reviews" / f"{name}.csv") for name in ("train", "validation")})[part]
    return text.tokenize(rows.select(range(160 if part == "train" else 60)), tokenizer(ENCODER))


@functools.cache
def titles(part="train"):
    rows = data.read(env.DATA / "titles" / f"{part}.json").select(range(80))
    talks = data.to_messages(rows, prompt="{review} What is its title?", answer="title")
    return text.tokenize_chat(talks, tokenizer(DECODER))


def classifier(**options):
    transformers.set_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=3, **options)


def writer(**options):
    return transformers.AutoModelForCausalLM.from_pretrained(DECODER, dtype=torch.float32, **options)


def arguments(folder, **changes):
    usual = dict(learning_rate=5e-4, num_train_epochs=4, per_device_train_batch_size=8, warmup_steps=0.1)
    return TrainingArguments(**{**usual, "output_dir": str(folder), "report_to": "none", "use_cpu": True, **changes})


def of_classifier(folder, model=None, rows=None, **changes):
    """What a healthy classifier gives to preflight, with what a test changes."""
    given = dict(model=model or classifier(), tokenizer=tokenizer(ENCODER), dataset=rows or reviews("train"))
    given |= dict(eval_dataset=reviews("validation"), data_collator=DataCollatorWithPadding(tokenizer(ENCODER)))
    given |= dict(compute_metrics=metrics.for_trainer(), preprocess_logits_for_metrics=metrics.keep_argmax)
    settings = {name: changes.pop(name) for name in list(changes) if name not in ASKED_FOR}
    return given | {"args": arguments(folder, **settings)} | changes


def of_writer(folder, model=None, rows=None, **changes):
    given = dict(model=model or writer(), tokenizer=tokenizer(DECODER), dataset=rows or titles())
    given |= dict(data_collator=DataCollatorForSeq2Seq(tokenizer(DECODER)))
    return given | {"args": arguments(folder, learning_rate=1e-3)} | changes


def frozen_head(folder):
    model = get_peft_model(classifier(), LoraConfig(**LORA))
    return of_classifier(folder, model, learning_rate=1e-3)


def label(row, wrong):
    rows = reviews("train").to_list()
    rows[row - 1]["labels"] = wrong
    return rows


def skewed(folder, score):
    part = reviews("validation").to_list()
    rows = [row for row in part if row["labels"] == 1] * 5 + [row for row in part if row["labels"] != 1][:4]
    return of_classifier(folder, eval_dataset=Dataset.from_list(rows), compute_metrics=score)


def micro(evaluation):
    return {"f1": float(np.mean(evaluation.predictions == evaluation.label_ids))}


def with_nan():
    model = classifier()
    model.classifier.bias.data.fill_(math.nan)
    return model


def without_openings(folder):
    opening, rows = tokenizer(DECODER).convert_tokens_to_ids("<|assistant|>"), []
    for row in titles():
        kept = [i for i, token in enumerate(row["input_ids"]) if token != opening]
        rows.append({name: [row[name][i] for i in kept] for name in ("input_ids", "labels")})
    return of_writer(folder, rows=rows)


def labels_of_writer(folder, change):
    return of_writer(folder, rows=titles().map(lambda row: {"labels": change(row)}))


def end_is_padding(rows):
    batch = DataCollatorForSeq2Seq(tokenizer(DECODER))(rows)
    return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == tokenizer(DECODER).eos_token_id, -100)}


def padding_counts(rows):
    batch = DataCollatorForSeq2Seq(tokenizer(DECODER))(rows)
    return {**batch, "labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, 0)}


def saved_adapter(**options):
    return PeftModel.from_pretrained(writer(), ADAPTERS / "titles", **options)


def second_adapter(folder):
    model = get_peft_model(classifier(), LoraConfig(**LORA, task_type="SEQ_CLS"))
    model.add_adapter("mine", LoraConfig(**LORA, task_type="SEQ_CLS"))
    return of_classifier(folder, model, learning_rate=3e-3)


def overwritten(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = saved_adapter(is_trainable=True)
        second = PeftModel.from_pretrained(first.get_base_model(), ADAPTERS / "intent", is_trainable=True)
        return of_writer(folder, second)


def in_four_bits(make, **options):
    env.mend_four_bit()
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **options)
    return make(quantization_config=config, device_map={"": "cpu"})


def merged(folder, stay):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(in_four_bits(writer), ADAPTERS / "titles", is_trainable=True)
        model.merge_adapter() if stay else None
        return of_writer(folder, model if stay else model.merge_and_unload())


def checkpoints(folder, optimizer=True, **changes):
    """A folder with a checkpoint at step 40, as the Trainer leaves it."""
    (folder / "checkpoint-40").mkdir()
    (folder / "checkpoint-40" / "optimizer.pt").write_bytes(b"") if optimizer else None
    transformers.TrainerState(global_step=40).save_to_json(folder / "checkpoint-40" / "trainer_state.json")
    return of_classifier(folder, **changes)


def caches(folder):
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=8192,
        pad_token_id=0, num_labels=3,
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(config)
    model.config.keys_to_ignore_at_inference = []
    settings = dict(eval_strategy="epoch", learning_rate=3e-2, use_cache=True)
    return of_classifier(folder, model, preprocess_logits_for_metrics=None, **settings)


def trains_norms():
    model = sorter(dict(target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "model.norm" in name)
    return model


def one_output():
    transformers.set_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=1)


def positions_of(n):
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=8192)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**small, num_labels=3, max_position_embeddings=n)
    )


def overwritten_first(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = saved_adapter(is_trainable=True)
        PeftModel.from_pretrained(first.get_base_model(), ADAPTERS / "intent", is_trainable=True, **options)
        return of_writer(folder, first)


def cut_off(folder):
    """The body of a classifier as somebody computes it who wants to save memory."""
    model = get_peft_model(classifier(), LoraConfig(**LORA, task_type="SEQ_CLS"))
    model.get_base_model().model.register_forward_hook(lambda module, inputs, output: detached(output))
    return of_classifier(folder, model, learning_rate=1e-3)


def mean(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits, labels)


def share(outputs, labels, num_items_in_batch):
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def of_accumulating(folder, model=None, **changes):
    return of_classifier(folder, model, **dict(per_device_train_batch_size=4, gradient_accumulation_steps=4) | changes)


def that_takes_no_count():
    model = classifier()
    model.accepts_loss_kwargs = False
    return model


def detached(output):
    output.last_hidden_state = output.last_hidden_state.detach()
    return output


def error_rate(evaluation):
    return {"error_rate": float(np.mean(evaluation.predictions != evaluation.label_ids))}


def chosen(folder, metric, **changes):
    """A run that keeps the best checkpoint by this metric."""
    usual = dict(
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model=metric
    )
    return of_classifier(folder, **{**usual, "compute_metrics": error_rate, **changes})


def twice(rows, token):
    return [{"input_ids": [token, *row["input_ids"]], "labels": [-100, *row["labels"]]} for row in rows]


def sorter(settings, kind=transformers.LlamaForSequenceClassification, task="SEQ_CLS", **more):
    """A small decoder or encoder with a head for three classes, and LoRA on it."""
    transformers.set_seed(0)
    small = dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=8192, num_labels=3, pad_token_id=0
    )
    model = kind(kind.config_class(**small, **({} if "GPT2" in kind.__name__ else {"intermediate_size": 64})))
    return get_peft_model(model, LoraConfig(task_type=task, r=4, **settings))


def head_by_hand(folder, kind=transformers.LlamaForSequenceClassification, head="score", targets=("q_proj",)):
    model = sorter(dict(target_modules=list(targets)), kind, task=None)
    getattr(model.get_base_model(), head).requires_grad_(True)
    return of_classifier(folder, model, learning_rate=1e-3)


@functools.cache
def with_new_tokens():
    new = transformers.AutoTokenizer.from_pretrained(DECODER)
    new.add_tokens(["<|call|>", "<|result|>"], special_tokens=True)
    texts = [f"<|begin|>lamp {i}<|assistant|><|call|> lamp {i}<|result|><|end|>" for i in range(80)]
    ids = [new(text, add_special_tokens=False)["input_ids"] for text in texts]
    return new, Dataset.from_list([{"input_ids": row, "labels": [-100] * 6 + row[6:]} for row in ids])


def with_a_special_word():
    """A word of the vocabulary as pad token; the embeddings have known it all the time."""
    own = transformers.AutoTokenizer.from_pretrained(DECODER)
    own.pad_token = own.convert_ids_to_tokens(300)
    return own


def new_tokens(folder, **settings):
    model, (new, rows) = writer(), with_new_tokens()
    model.resize_token_embeddings(len(new), mean_resizing=False)
    if settings:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    given = dict(tokenizer=new, data_collator=DataCollatorForSeq2Seq(new))
    return of_writer(folder, model, rows, args=arguments(folder, learning_rate=2e-3)) | given


def in_half(folder, dtype=torch.float16, lora=False, **changes):
    model = classifier(dtype=dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(**LORA, task_type="SEQ_CLS"), autocast_adapter_dtype=False)
    return of_classifier(folder, model, **changes)


def evaluates_much(folder, **changes):
    """A vocabulary that is large beside the rest: the logits of an evaluation batch are more than training needs."""
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64_000, **small))
    rows = [[{"input_ids": [i + j] * 64, "labels": [i + j] * 64} for j in range(32)] for i in (3, 100)]
    args = arguments(folder, per_device_train_batch_size=2, per_device_eval_batch_size=32, eval_strategy="epoch")
    given = of_writer(folder, model, Dataset.from_list(rows[0]), eval_dataset=Dataset.from_list(rows[1]), args=args)
    return given | {"data_collator": transformers.default_data_collator, "tokenizer": None} | changes


def epoch_of_before(folder, **changes):
    given = checkpoints(folder, resume_from_checkpoint=True, **changes)
    state = transformers.TrainerState(global_step=40, epoch=4.0)
    state.save_to_json(folder / "checkpoint-40" / "trainer_state.json")
    return given


def end_is_padding_in_the_collator(folder, collator):
    """A tokenizer that has no padding of its own, so that people take the end for it."""
    same = transformers.AutoTokenizer.from_pretrained(DECODER)
    same.pad_token = same.eos_token
    collator = collator(same)
    rows = titles() if isinstance(collator, DataCollatorForSeq2Seq) else titles().select_columns("input_ids")
    return of_writer(folder, rows=rows, data_collator=collator) | {"tokenizer": same}


def without_answers(folder):
    """Rows that were cut so early that no answer is left in most of them."""
    rows = [{name: row[name][:6] for name in ("input_ids", "labels")} for row in titles()]
    return of_writer(folder, rows=Dataset.from_list(rows))


@pytest.mark.parametrize(("after", "found"), [(2.85, ["learning rate"]), (0.78, [])])
def test_the_loss_after_the_trial_tells_a_rate_that_its_mean_hides(after, found, monkeypatch, tmp_path):
    """MiniLM's six losses at thirty times its rate; what decides is the loss of the same rows after them."""
    losses = dict(before=1.09, during=[1.08, 1.36, 0.98, 1.09, 1.64, 5.98], after=after)
    look = preflight._after_trial
    monkeypatch.setattr(
        preflight, "_after_trial", lambda facts, trial: look(facts, dataclasses.replace(trial, **losses))
    )
    assert preflight.check(**of_classifier(tmp_path)).names == found


BROKEN = {  # what is broken: (the arguments of preflight in a folder, the name of the problem, words of its message)
    "rate too high": (lambda f: of_classifier(f, learning_rate=5e-2), "learning rate", "Try a tenth"),
    "rate too low": (lambda f: of_classifier(f, learning_rate=1e-7), "learning rate", "Try ten times"),
    "warm-up of 500 steps": (lambda f: of_classifier(f, warmup_steps=500), "warm-up", "500 steps and the run has 80"),
    "accumulated means": (
        of_accumulating,
        "accumulation",
        r"model's loss .* 4 times .* model.accepts_loss_kwargs",
    ),
    "accumulated means, adapter": (
        lambda f: of_accumulating(
            f, get_peft_model(classifier(), LoraConfig(**LORA, task_type="SEQ_CLS")), learning_rate=3e-3
        ),
        "accumulation",
        r"Set model\.get_base_model\(\)\.accepts_loss_kwargs",
    ),
    "accumulated means of one's own": (
        lambda f: of_accumulating(f, compute_loss_func=mean),
        "accumulation",
        "compute_loss_func is a mean .* divided by num_items_in_batch",
    ),
    "frozen head": (frozen_head, "frozen head", r'modules_to_save=\["classifier"\]'),
    "many epochs, no evaluation": (
        lambda f: of_classifier(f, num_train_epochs=20),
        "overfitting",
        "20 passes over 160",
    ),
    "patience": (
        lambda f: of_classifier(f, eval_strategy="epoch", callbacks=[EarlyStoppingCallback(3)]),
        "patience",
        "for 3 .* has 4",
    ),
    "the best is lost": (
        lambda f: of_classifier(f, eval_strategy="epoch", save_strategy="epoch", save_total_limit=3),
        "best lost",
        "limit=3",
    ),
    "leak": (
        lambda f: of_classifier(f, rows=concatenate_datasets([reviews("train"), reviews("validation")])),
        "leak",
        "60 of 60 .*row 1 is training row 161",
    ),
    "imbalance": (lambda f: skewed(f, metrics.for_trainer("accuracy")), "metric", "accuracy 0.9.*f1_macro"),
    "micro average": (lambda f: skewed(f, micro), "metric", "f1 0.9.*f1_macro"),
    "label too large": (lambda f: of_classifier(f, rows=label(17, 3)), "labels", "row 17 .*num_labels=4"),
    "label negative": (lambda f: of_classifier(f, rows=label(3, -1)), "labels", "row 3 has the label -1"),
    "label is text": (lambda f: of_classifier(f, rows=label(5, "good")), "labels", "row 5 has the label good"),
    "no labels": (
        lambda f: of_classifier(f, rows=reviews("train").remove_columns("labels")),
        "labels",
        "no column labels",
    ),
    "sorted and cut": (
        lambda f: of_classifier(f, rows=reviews("train").sort("labels").select(range(90))),
        "class missing",
        "LABEL_2",
    ),
    "tokens of another tokenizer": (
        lambda f: of_classifier(
            f, rows=[{**row, "input_ids": [9000, *row["input_ids"][1:]]} for row in reviews("train")]
        ),
        "vocabulary",
        "9000",
    ),
    "padded to 256": (
        lambda f: of_classifier(
            f,
            data_collator=DataCollatorWithPadding(tokenizer(ENCODER), "max_length", max_length=256),
            per_device_train_batch_size=2,
        ),
        "padding",
        "256 wide",
    ),
    "nothing counts": (
        lambda f: labels_of_writer(f, lambda row: [-100] * len(row["labels"])),
        "nothing counts",
        "80 of 80 .*row 1",
    ),
    "padding counts": (lambda f: of_writer(f, data_collator=padding_counts), "padding counts", "label 0"),
    "end is padding": (
        lambda f: of_writer(f, data_collator=end_is_padding),
        "never stops",
        "padding and the end are one",
    ),
    "no end": (
        lambda f: of_writer(f, rows=[{k: row[k][:-1] for k in ("input_ids", "labels")} for row in titles()]),
        "never stops",
        "Add tokenizer.eos_token",
    ),
    "no template": (without_openings, "template", re.escape("<|assistant|>")),
    "adapter loaded frozen": (lambda f: of_writer(f, saved_adapter()), "adapter", "is_trainable=True"),
    "adapter not active": (second_adapter, "adapter", 'set_adapter."mine".'),
    "adapter overwritten": (overwritten, "adapter overwritten", "load_adapter"),
    "merged in four bits": (lambda f: merged(f, stay=True), "merged in four bits", "dequantize"),
    "merged in four bits, unloaded": (lambda f: merged(f, stay=False), "merged in four bits", "rounded again"),
    "quantised head": (
        lambda f: of_classifier(f, get_peft_model(in_four_bits(classifier), LoraConfig(**LORA)), learning_rate=1e-3),
        "quantised head",
        "llm_int8_skip_modules",
    ),
    "nothing to train": (
        lambda f: of_classifier(f, classifier().requires_grad_(False)),
        "frozen head",
        "requires_grad",
    ),
    "writer frozen": (lambda f: of_writer(f, writer().requires_grad_(False)), "no gradient", "Unfreeze"),
    "gradient cut off": (cut_off, "no gradient", "Wqkv.lora_A"),
    "weights that are no numbers": (lambda f: of_classifier(f, with_nan()), "loss", "the loss is nan"),
    "out of memory": (
        lambda f: of_classifier(f, per_device_train_batch_size=32, device=0.1),
        "memory",
        "it fits: peak",
    ),
    "evaluation eats memory": (
        lambda f: of_writer(
            f,
            eval_dataset=concatenate_datasets([titles("validation")] * 4),
            compute_metrics=lambda evaluation: {},
            device=0.3,
            args=arguments(f, learning_rate=1e-3, eval_strategy="epoch", per_device_eval_batch_size=2),
        ),
        "evaluation memory",
        "keeps logits of each row, .* of 320 rows",
    ),
    "begins twice": (
        lambda f: of_writer(f, rows=twice(titles(), tokenizer(DECODER).bos_token_id)),
        "begins twice",
        "80 of 80",
    ),
    "head by hand": (head_by_hand, "not saved", r'score is trained and not in modules_to_save.*\["score"\]'),
    "head by hand, classifier": (
        lambda f: head_by_hand(f, transformers.BertForSequenceClassification, "classifier", ["query"]),
        "not saved",
        r'\["classifier"\]',
    ),
    "norms by hand": (
        lambda f: of_classifier(f, trains_norms(), learning_rate=1e-3),
        "not saved",
        r'\["norm"\]|norm',
    ),
    "head as a target": (
        lambda f: of_classifier(f, sorter(dict(target_modules=["q_proj", "score"]), task=None), learning_rate=1e-3),
        "frozen head",
        "score is new and a target of the adapter",
    ),
    "head of a Conv1D model": (
        lambda f: head_by_hand(f, transformers.GPT2ForSequenceClassification, "score", ["c_attn"]),
        "not saved",
        "score is trained",
    ),
    "new tokens": (
        lambda f: new_tokens(f, target_modules=["q_proj"]),
        "new tokens",
        r"<\|call\|>, <\|result\|> are new.*trainable_token_indices=\[4096, 4097\]",
    ),
    "new tokens, one forgotten": (
        lambda f: new_tokens(f, target_modules=["q_proj"], trainable_token_indices=[4096]),
        "new tokens",
        r"^<\|result\|> are new",
    ),
    "new tokens, output frozen": (
        lambda f: new_tokens(f, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        "new tokens",
        "of the output embeddings",
    ),
    "fp16 twice": (lambda f: in_half(f, fp16=True), "half precision", "trained in float16, .*unscale"),
    "fp16 twice, adapter": (
        lambda f: in_half(f, lora=True, fp16=True),
        "half precision",
        "trained in float16, .*unscale",
    ),
    "bf16 and fp16": (lambda f: in_half(f, torch.bfloat16, fp16=True), "half precision", "trained in bfloat16"),
    "fp16 alone": (in_half, "half precision", "in float16 alone"),
    "hidden states": (
        lambda f: of_classifier(
            f, classifier(output_hidden_states=True), eval_strategy="epoch", preprocess_logits_for_metrics=None
        ),
        "evaluation outputs",
        "keeps logits, hidden_states of each row, .*output_hidden_states=False",
    ),
    "attentions": (
        lambda f: of_classifier(
            f,
            classifier(output_attentions=True, attn_implementation="eager"),
            eval_strategy="epoch",
            preprocess_logits_for_metrics=None,
        ),
        "evaluation outputs",
        "output_attentions=False",
    ),
    "a cache": (caches, "evaluation", "DynamicCache"),
    "evaluation batch": (lambda f: evaluates_much(f, device=0.5), "evaluation memory", "per_device_eval_batch_size=2"),
    "best of no such metric": (lambda f: chosen(f, "f1"), "best metric", "gives eval_error_rate, eval_loss"),
    "best of no such set": (
        lambda f: chosen(f, "error_rate", eval_dataset={"mine": reviews("validation")}),
        "best metric",
        "eval_mine_error_rate",
    ),
    "worst by error": (lambda f: chosen(f, "error_rate"), "best metric", "less is better.*greater_is_better=False"),
    "worst by a name": (
        lambda f: chosen(f, "wer", compute_metrics=lambda e: {"wer": error_rate(e)["error_rate"]}),
        "best metric",
        "of wer less",
    ),
    "worst by accuracy": (
        lambda f: chosen(f, "accuracy", compute_metrics=metrics.for_trainer(), greater_is_better=False),
        "best metric",
        "of accuracy more.*greater_is_better=True",
    ),
    "worst by loss": (lambda f: chosen(f, "loss", greater_is_better=True), "best metric", "of loss less"),
    "best without evaluation": (
        lambda f: of_classifier(f, load_best_model_at_end=True, save_strategy="no"),
        "best lost",
        "0 evaluations",
    ),
    "best of one": (
        lambda f: chosen(f, "loss", eval_strategy="steps", save_strategy="steps", eval_steps=100, save_steps=100),
        "best lost",
        "1 evaluations in 80 steps",
    ),
    "evaluated late": (
        lambda f: of_classifier(f, eval_strategy="steps", eval_steps=500),
        "evaluation",
        "eval_steps=500 and the run has 80",
    ),
    "no rows to evaluate": (
        lambda f: of_classifier(f, eval_strategy="epoch", eval_dataset=None),
        "evaluation",
        "the Trainer has no rows",
    ),
    "compute_metrics raises": (
        lambda f: of_classifier(f, eval_strategy="epoch", compute_metrics=lambda e: {"x": e.predictions[9999]}),
        "evaluation",
        "stops on a few rows with IndexError",
    ),
    "compute_metrics gives a number": (
        lambda f: of_classifier(f, eval_strategy="epoch", compute_metrics=lambda e: 0.5),
        "evaluation",
        "stops on a few rows with TypeError",
    ),
    "NaN in one weight": (lambda f: of_classifier(f, with_nan()), "loss", "classifier.bias hold NaN"),
    "other label names": (
        lambda f: of_classifier(f, eval_strategy="epoch", label_names=["label"]),
        "evaluation",
        "no label, so",
    ),
    "columns of text": (
        lambda f: of_classifier(
            f, rows=Dataset.from_dict({"text": ["a", "b"] * 20, "words": [1, 2] * 20}), eval_dataset=None
        ),
        "columns",
        "text, words",
    ),
    "rows of unequal length": (
        lambda f: of_classifier(f, data_collator=transformers.default_data_collator),
        "collator",
        "DataCollatorWithPadding",
    ),
    "text left in the rows": (
        lambda f: of_classifier(
            f, rows=reviews("train").add_column("text", ["a"] * 160), remove_unused_columns=False, eval_dataset=None
        ),
        "collator",
        "ValueError",
    ),
    "worker of a lambda": (
        lambda f: of_classifier(
            f,
            data_collator=lambda rows: DataCollatorWithPadding(tokenizer(ENCODER))(rows),
            dataloader_num_workers=2,
            dataloader_multiprocessing_context="spawn",
        ),
        "workers",
        "cannot be sent to a worker",
    ),
    "smoothing of one output": (
        lambda f: of_classifier(f, one_output(), label_smoothing_factor=0.1, compute_metrics=None),
        "smoothing",
        "always 0",
    ),
    "many positions": (
        lambda f: of_classifier(f, positions_of(16)),
        "does not run",
        "input_ids",
    ),
    "an optimizer that needs more": (lambda f: of_classifier(f, optim="galore_adamw"), "does not run", "galore"),
    "resumed with other rows": (epoch_of_before, "resume", "was in epoch 4.00, .* in epoch 2.00"),
    "resumed without the optimizer": (
        lambda f: checkpoints(f, optimizer=False, resume_from_checkpoint=True),
        "resume",
        "no optimizer.pt",
    ),
    "end is padding in the collator": (
        lambda f: end_is_padding_in_the_collator(
            f, lambda t: transformers.DataCollatorForLanguageModeling(t, mlm=False)
        ),
        "never stops",
        "padding and the end are one",
    ),
    "answers are cut": (without_answers, "nothing counts", "80 of 80"),
    "first of two PeftModels": (
        lambda f: overwritten_first(f, adapter_name="two"),
        "adapter overwritten",
        "another is written over it",
    ),
    "starts over": (checkpoints, "resume", "starts over at step 0"),
    "an optimizer that memory does not know": (
        lambda f: of_classifier(f, optim="ademamix", device=64),
        "optimizer",
        "the memory of ademamix is not known",
    ),
    "resumed when finished": (
        lambda f: checkpoints(f, num_train_epochs=2, resume_from_checkpoint=True),
        "resume",
        "step 40 and the run ends at step 40",
    ),
    "resumed without a state": (
        lambda f: of_classifier(f, resume_from_checkpoint=str(f)),
        "resume",
        "no trainer_state.json",
    ),
}


def asked(given):
    return preflight.check(**given)


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_run_is_named(broken, monkeypatch, tmp_path):
    make, name, words = BROKEN[broken]
    trial = {"learning rate", "loss", "no gradient"}  # once another problem is named, no trial: it takes time
    monkeypatch.setattr(preflight, "NO_TRIAL", preflight.NO_TRIAL | {name for _, name, _ in BROKEN.values()} - trial)
    given = make(tmp_path)
    report = asked(given)
    assert name in report.names, report
    assert re.search(words, next(problem.message for problem in report if problem.name == name))
    allowed = {"frozen head": {"no gradient"}, "no gradient": {"adapter"}, "adapter": {"no gradient"}}
    assert set(report.names) <= {name} | allowed.get(name, set()), report


def of_a_notebook(rows):
    return DataCollatorWithPadding(tokenizer(ENCODER))(rows)


def test_what_a_notebook_defines_is_not_in_a_worker(monkeypatch, tmp_path):
    main, many = sys.modules["__main__"], dict(dataloader_num_workers=2, dataloader_multiprocessing_context="spawn")
    monkeypatch.setattr(main, "of_a_notebook", of_a_notebook, raising=False)
    monkeypatch.setattr(of_a_notebook, "__module__", "__main__")
    monkeypatch.setattr(preflight, "_tried", lambda facts: [])
    given = of_classifier(tmp_path, data_collator=of_a_notebook, **many)
    monkeypatch.setattr(main, "__file__", "train.py", raising=False)
    assert asked(given).names == []
    monkeypatch.delattr(main, "__file__")
    assert "a worker has nothing that a notebook defines" in asked(given)[0].message


def test_every_problem_that_preflight_knows_has_a_broken_run():
    known = re.findall(r"[\"'](?:error|warning|{level}), ([a-z -]+): ", inspect.getsource(preflight))
    assert len(known) > 25
    assert set(known) == {name for _, name, _ in BROKEN.values()}


def with_layers_by_hand():
    """LoRA without a PeftModel around it, so without a list of its adapters."""
    model = inject_adapter_in_model(LoraConfig(**LORA), classifier())
    model.classifier.requires_grad_(True)
    return model


HEALTHY = {
    "classifier": of_classifier,
    "writer": of_writer,
    "adapter": lambda f: of_classifier(
        f, get_peft_model(classifier(), LoraConfig(**LORA, task_type="SEQ_CLS")), learning_rate=3e-3
    ),
    "four bits": lambda f: of_writer(
        f, get_peft_model(in_four_bits(writer), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    ),
    "checkpointing": lambda f: of_classifier(
        f,
        get_peft_model(classifier(), LoraConfig(**LORA, task_type="SEQ_CLS")),
        learning_rate=3e-3,
        activation_checkpointing=True,
    ),
    "layers put in by hand": lambda f: of_classifier(f, with_layers_by_hand(), learning_rate=3e-3),
    "a list of rows": lambda f: of_classifier(f, rows=reviews("train").to_list(), eval_dataset=None),
    "new tokens, all trained": new_tokens,
    "new tokens, their rows": lambda f: new_tokens(f, target_modules=["q_proj"], trainable_token_indices=[4096, 4097]),
    "new tokens, both tables": lambda f: new_tokens(
        f, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    ),
    "an old token that was made special": lambda f: (
        of_writer(f, get_peft_model(writer(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")))
        | {"tokenizer": with_a_special_word()}
    ),
    "padding is the end, masked by position": lambda f: end_is_padding_in_the_collator(f, DataCollatorForSeq2Seq),
    "Conv1D": lambda f: of_classifier(
        f,
        sorter(dict(target_modules=["c_attn"]), transformers.GPT2ForSequenceClassification),
        learning_rate=1e-2,
    ),
    "chosen by accuracy": lambda f: chosen(f, "accuracy", compute_metrics=metrics.for_trainer(), save_total_limit=1),
    "chosen by loss": lambda f: chosen(f, "loss"),
    "chosen in one of two sets": lambda f: chosen(
        f,
        "mine_accuracy",
        compute_metrics=metrics.for_trainer(),
        eval_dataset={"mine": reviews("validation"), "few": reviews("validation").select(range(9))},
    ),
    "hidden states, cut away": lambda f: of_classifier(f, classifier(output_hidden_states=True), eval_strategy="epoch"),
    "a base in fp16": lambda f: of_writer(
        f, get_peft_model(writer().half(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    ),
    "workers": lambda f: of_classifier(f, dataloader_num_workers=2, dataloader_multiprocessing_context="spawn"),
    "goes on": lambda f: checkpoints(f, resume_from_checkpoint=True),
    "room enough": lambda f: of_classifier(f, device=4),
    "accumulation": lambda f: of_writer(f, args=arguments(f, learning_rate=1e-3, gradient_accumulation_steps=4)),
    "accumulation, divided by the Trainer": lambda f: of_accumulating(f, loss_is_scaled_for_ga=False),
    "accumulation, no count": lambda f: of_accumulating(f, that_takes_no_count()),
    "accumulation, smoothed": lambda f: of_accumulating(f, label_smoothing_factor=0.1),
    "accumulation, a loss of one's own": lambda f: of_accumulating(f, compute_loss_func=share),
}


@pytest.mark.slow
@pytest.mark.parametrize("healthy", HEALTHY)
def test_a_healthy_run_raises_no_alarm_and_the_model_stays_as_it_was(healthy, tmp_path):
    given = HEALTHY[healthy](tmp_path)
    model = given["model"]
    model.train(False)
    weight = next(p for p in model.parameters() if p.requires_grad)
    weight.grad = torch.ones_like(weight)
    before = as_it_is(model)
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    report = asked(given)
    assert report == []
    assert report.ok
    assert same(as_it_is(model), before)
    assert random.getstate() == numbers[0]
    assert np.random.get_state()[1].tolist() == numbers[1]
    assert torch.equal(torch.get_rng_state(), numbers[2])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "names"), [(classifier, ["accumulation"]), (that_takes_no_count, [])])
def test_the_means_of_two_processes_are_added_too(model, names, monkeypatch, tmp_path):
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    report = asked(of_classifier(tmp_path, model(), loss_is_scaled_for_ga=False))
    assert report.names == names
    assert all("of 2 small batches" in problem.message for problem in report)


def as_it_is(model):
    state = {f"weight {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    state |= {f"gradient {name}": p.grad for name, p in model.named_parameters()}
    state |= {f"trained {name}": p.requires_grad for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        state |= {f"mode {name}": module.training, f"hooks {name}": len(module._forward_hooks)}
    return state | {"checkpointing": model.is_activation_checkpointing}


def same(state, other):
    return state.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in state.items()
    )


# ---- The set-ups of the notebooks ---------------------------------------------------------------------------------
# The cells of a notebook that its sweep needs are run, and one point of each kind of run is started; where it would
# train, preflight is asked instead. So this covers the runs of the sweeps and the one of notebook 00, not each single
# run of a notebook. (Some of the others are broken on purpose.)

POINTS = {
    "02_generation": [{}],  # its training; the sweep's runs end their answers with another token on purpose
    "more/02b_encoder_decoder": [dict(task="titles", start="pretrained", learning_rate=1e-3, seed=0, epochs=3)],
    "03_full_fine_tuning": [
        dict(lever=lever, learning_rate=0.2 if lever == "SGD" else 5e-4, seed=0)
        for lever in ("pure bf16", "checkpointing", "SGD")
    ],
    "04_lora": [{}],  # its own training; those of the sweep are of a recipe, and trained the same way
    "05_qlora": [dict(method="QLoRA", learning_rate=8e-3, seed=0)],
    "06_multi_adapter": [dict(task=task, seed=0) for task in ("intent", "titles")],
}


class Asked(Exception):
    """Instead of a training."""


def ask_of(trainer, resume_from_checkpoint=None):
    return preflight.check(
        trainer.model,
        trainer.processing_class or trainer.data_collator.tokenizer,
        trainer.train_dataset,
        trainer.args,
        eval_dataset=trainer.eval_dataset,
        data_collator=trainer.data_collator,
        compute_metrics=trainer.compute_metrics,
        preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
        callbacks=trainer.callback_handler.callbacks,
        compute_loss_func=trainer.compute_loss_func,
        loss_is_scaled_for_ga=trainer.loss_is_scaled_for_ga,
        resume_from_checkpoint=resume_from_checkpoint,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", POINTS)
def test_the_runs_of_a_sweep_raise_no_alarm(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    reports = []

    def train(trainer, *args, **options):
        reports.append(ask_of(trainer, *args, **options))
        raise Asked

    monkeypatch.setattr(transformers.Trainer, "train", train)
    notebook, space = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4), {}
    exec("\n\n".join(notebook.cells[i].source for i in tagged(notebook, "sweep")), space)
    for point in POINTS[name]:
        with contextlib.suppress(Asked):
            if "sweep_point" in space:
                space["sweep_point"](**point)
            else:
                space["trainer_for"](space["pretrained"](), space["examples"]["train"]).train()
    assert len(reports) == len(POINTS[name])
    assert not [report for report in reports if report], reports


@pytest.mark.slow
def test_the_runs_of_notebook_01_raise_no_alarm(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    space = {}
    notebook = nbformat.read(NOTEBOOKS / "01_classification.ipynb", as_version=4)
    exec("\n\n".join(notebook.cells[i].source for i in tagged(notebook, "sweep")), space)
    assert ask_of(space["trainer_for"](space["examples"]["train"], space["examples"]["validation"])) == []


@pytest.mark.slow
def test_the_run_of_the_first_notebook_raises_no_alarm(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    space = {}
    for cell in code_cells(nbformat.read(NOTEBOOKS / "00_start_here.ipynb", as_version=4)):
        if "trainer.train()" in cell.source:
            break
        exec(cell.source, space)
    assert ask_of(space["trainer"]) == []


# ---- Notebook 08 --------------------------------------------------------------------------------------------------


@functools.cache
def notebook_08():
    return nbformat.read(NOTEBOOKS / "08_break_it.ipynb", as_version=4)


def test_each_link_of_the_table_of_symptoms_leads_to_a_heading():
    text = "\n".join(cell.source for cell in notebook_08().cells if cell.cell_type == "markdown")
    anchors = {line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) > 20
    assert set(links) <= anchors


@pytest.mark.slow
def test_the_take_home_cell_finds_the_leak_in_a_file(tmp_path):
    file = tmp_path / "mine.csv"
    settings, _ = messages(file, random.Random(7))
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines + lines[1:101]) + "\n")
    source = notebook_08().cells[tagged(notebook_08(), "take-home")[0]].source
    settings |= {"FILE": str(file), "OUT": str(tmp_path / "out"), "MODEL": str(ENCODER)}
    assert run_alone(with_settings(source, settings), tmp_path).splitlines()[-1] == "look at: ['leak']"
