"""The recorded runs of notebooks 04 and 04b: settings chosen on validation rows, judged on seeds that did not choose.

    python data/recipes/lora.py tiny-encoder minilm            # what is not on record yet; a run broken off goes on
    python data/recipes/lora.py minilm --only main targets     # some of main, targets, rank, even, relatives, fits

Any encoder will do: a name, a folder, a Hub id. The records are in data/results/04_lora/MODEL, one for each run, with
what the model said of each row; the notebooks show every model that has a folder there. Their names say what they are:

* grid-, rank-, targets-: one setting and seed, scored on the validation rows: what settings are chosen by.
* fresh-: a chosen setting with seeds that chose nothing, scored on all parts.
* final-: older runs of the chosen settings, with the seeds that chose; 04 takes its seconds from these.
"""

import argparse
import itertools
import re
import time
from pathlib import Path

import classification
import numpy as np
import torch
from corpus import Corpus
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    LlamaConfig,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from helpers import data, env, memory, metrics, record

RESULTS = env.DATA / "results" / "04_lora"
RANK, ALPHA = 16, 32
ROWS = {"tiny-encoder": 500}  # labelled rows of a run; another model has 300, a run then takes a minute
CHOOSING, JUDGING = {"tiny-encoder": (0, 1, 2)}, (3, 4, 5)  # seeds: those that choose, another model has 0; the others
PARTS = ("validation", "test_same", "test_unseen", "test_handwritten", "test_fresh")
RATES = {  # of each way on each model; another model: a third of the recommended rate, that rate, three times that
    "tiny-encoder": {
        "full": (2.5e-4, 5e-4, 1e-3),
        "LoRA": (1e-3, 3e-3, 1e-2),
        "head only": (1e-2, 3e-2, 1e-1),
    },
    "minilm": {"full": (2e-4,), "LoRA": (2e-3,), "head only": (1e-2,)},  # by its width, not tried on these rows
}
RANKS = {"tiny-encoder": (1, 4, 16, 64), "minilm": (1, 64)}  # at alpha 32; alpha at 2 x rank is in the older records
RELATIVES = {  # of 04b, at rank 4 and alpha 8, tiny model: four rates each
    "LoRA": (1e-3, 3e-3, 1e-2, 3e-2),
    "DoRA": (1e-3, 3e-3, 1e-2, 3e-2),
    "PiSSA": (3e-4, 1e-3, 3e-3, 1e-2),
    "OLoRA": (3e-4, 1e-3, 3e-3, 1e-2),
    "LoRA+": (3e-4, 1e-3, 3e-3, 1e-2),  # of A; that of B is 16 times as high
    "IA3": (3e-3, 1e-2, 3e-2, 1e-1),
    "prompt tuning": (1e-2, 3e-2, 1e-1, 3e-1),
}
LORA_LIKE = {
    "LoRA": {},
    "LoRA on a random base": {},
    "LoRA+": {},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
}


class Sweep(classification.Sweep):
    """The runs of one model; reading, tokenising and predicting are those of notebook 01."""

    def __init__(self, model):
        super().__init__(model)
        self.name = Path(model).name
        self.folder = RESULTS / self.name
        self.maps = data.label_maps(self.splits("reviews")["train"])
        self.texts = data.read(env.DATA / "support" / "validation.jsonl").select(range(300))
        self.targets = targets_of(self.pretrained(0))
        filler, info = AutoModelForMaskedLM.from_pretrained(self.path, output_loading_info=True)
        self.filler = None if info["missing_keys"] else filler.eval()  # one with a new output layer knows no words
        documents = [self.tokenizer(text, truncation=True, max_length=128) for text in Corpus(seed=1000).documents(200)]
        mask = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=0.3, seed=0)
        self.held_out = [mask(documents[i : i + 50]) for i in range(0, len(documents), 50)] if self.filler else []

    def pretrained(self, seed, random_base=False):
        set_seed(seed)
        if random_base:
            return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(self.path, **self.maps))
        return AutoModelForSequenceClassification.from_pretrained(self.path, **self.maps)

    def peft_config(self, way, rank, alpha, targets="all"):
        """A peft configuration; None for the ways that have no adapter."""
        if way in LORA_LIKE:
            config = dict(r=rank, lora_alpha=alpha, target_modules=self.targets[targets], **LORA_LIKE[way])
            return LoraConfig(task_type="SEQ_CLS", **config)
        if way == "IA3":  # keys, values and the inner layer of the MLP; peft has no default for ModernBERT
            fused = {"target_modules": ["Wqkv", "mlp.Wo"], "feedforward_modules": ["mlp.Wo"]}
            return IA3Config(task_type="SEQ_CLS", **(fused if "Wqkv" in self.targets["all"] else {}))
        if way == "prompt tuning":
            return PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=20)
        return None

    def adapted(self, way, seed, rank=RANK, alpha=ALPHA, targets="all"):
        model = self.pretrained(seed, random_base=way.endswith("random base"))
        if way == "head only":
            model.base_model.requires_grad_(False)  # transformers' word for the body, without the head
        config = self.peft_config(way, rank, alpha, targets)
        return get_peft_model(model, config) if config else model

    def trained(self, way, learning_rate, seed, **adapter):
        rows = self.splits("reviews")["train"].shuffle(seed=seed).select(range(ROWS.get(self.name, 300)))
        model = self.adapted(way, seed, **adapter)
        arguments = TrainingArguments(
            output_dir=env.fresh_folder("lora"),
            learning_rate=learning_rate,
            num_train_epochs=4,
            per_device_train_batch_size=16,
            warmup_steps=0.1,
            train_sampling_strategy="group_by_length",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=env.device() == "cpu",
            seed=seed,
        )
        options = dict(
            train_dataset=self.examples("reviews", rows), data_collator=DataCollatorWithPadding(self.tokenizer)
        )
        if way == "LoRA+":
            rates = dict(lr=learning_rate, loraplus_lr_ratio=16, weight_decay=0.0)
            options["optimizers"] = (create_loraplus_optimizer(model, torch.optim.AdamW, **rates), None)
        trainer = Trainer(model, arguments, **options)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return model

    def sweep_point(self, way, learning_rate, seed, rank=None, alpha=None, targets="all", parts=("validation",), **_):
        """Train on 500 rows, another 500 for each seed; accuracy and answers on each part, and what the body kept."""
        adapter = dict(rank=rank, alpha=alpha, targets=targets) if rank else {}
        started = time.process_time()  # other work on the machine disturbs it less than it does a clock
        model = self.trained(way, learning_rate, seed, **adapter)
        found = {"metrics": {}, "predictions": {}, "cpu_s": round(time.process_time() - started, 1)}
        for part in parts:
            rows = self.splits("reviews")[part]
            ids = np.argmax(self.logits("reviews", model, rows), -1)
            found["metrics"][part] = metrics.score("accuracy", ids, rows["label"][:])
            found["predictions"][part] = "".join(map(str, ids))
        found["metrics"] |= {"base_loss": self.base_loss(model), "neighbours": self.neighbours(model)}
        found["metrics"]["trained"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return found

    # ---- What a body still knows ----

    def body(self, model):
        """The body of a classifier; None where virtual tokens change the input and not the body."""
        if hasattr(model, "peft_config"):
            if model.active_peft_config.is_prompt_learning:
                return None
            model = model.get_base_model()
        return model.base_model

    def base_loss(self, model):
        """Mean loss over masked words of its own pre-training text; None for a model whose output layer is not here."""
        body = self.body(model)
        if body is None or self.filler is None:
            return None
        name, own = self.filler.base_model_prefix, self.filler.base_model
        setattr(self.filler, name, body)
        total, n_tokens = metrics.total_loss(self.filler, self.held_out)
        setattr(self.filler, name, own)
        return total / n_tokens

    @torch.no_grad()
    def neighbours(self, model):
        """Of how many support messages is the nearest other one, by the mean of their vectors, of the same intent?"""
        body, vectors = self.body(model), []
        if body is None:
            return None
        body.eval()
        for start in range(0, len(self.texts), 50):
            texts = self.texts["text"][start : start + 50]
            batch = self.tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
            batch = batch.to(body.device)
            mask = batch["attention_mask"][:, :, None]
            vectors.append((body(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        vectors = torch.nn.functional.normalize(torch.cat(vectors), dim=-1)
        nearest = (vectors @ vectors.T).fill_diagonal_(-1).argmax(-1).tolist()
        intents = self.texts["intent"][:]
        return float(np.mean([intents[i] == intents[j] for i, j in enumerate(nearest)]))

    # ---- All runs ----

    def point(self, kind, way, learning_rate, seed, rank=None, alpha=None, targets="all", parts=("validation",)):
        """Make a run and save it, unless its record is there."""
        adapter = f"-r{rank}-a{alpha}" if rank else ""
        where = f"-{targets}" if targets != "all" else ""
        name = f"{kind}-{way.replace(' ', '-')}{where}-{learning_rate:g}{adapter}-{seed}"
        if (self.folder / f"{name}.json").exists():
            return
        settings = dict(way=way, learning_rate=learning_rate, rank=rank, alpha=alpha, seed=seed)
        settings |= {"targets": targets} if targets != "all" else {}
        settings |= {"parts": parts} if parts != ("validation",) else {}
        found = self.sweep_point(**settings)
        about = dict(seconds=found.pop("cpu_s"), machine=env.machine(), versions=env.versions())
        record.save(self.folder, name, settings={**settings, "model": self.model}, **found, **about)
        shown = {key: round(value, 3) for key, value in found["metrics"].items() if isinstance(value, float)}
        print(self.name, name, f"{about['seconds']} s", shown, flush=True)

    def rates(self, way):
        way = "LoRA" if way.startswith("LoRA") else way
        if self.name in RATES:
            return RATES[self.name][way]
        recommended = env.recommend(self.model, "full" if way == "full" else "lora")["learning_rate"]
        return tuple(recommended * factor * (10 if way == "head only" else 1) for factor in (1 / 3, 1, 3))

    def means(self, metric="validation", **settings):
        """{rate: mean over the choosing seeds} of the runs with these settings."""
        scores = {}
        for run in record.load(self.folder):
            of = {"targets": "all"} | run["settings"]
            chooses = run["name"].startswith(("grid-", "rank-", "targets-"))
            if chooses and all(of[key] == value for key, value in settings.items()):
                scores.setdefault(of["learning_rate"], []).append(run["metrics"][metric])
        return {rate: np.mean(values) for rate, values in sorted(scores.items())}

    def chosen(self, rates, **settings):
        """Of these rates the one with the highest mean."""
        means = {rate: mean for rate, mean in self.means(**settings).items() if rate in rates}
        return max(means, key=means.get)

    def choose_and_judge(self, kind, way, rates, **adapter):
        for rate, seed in itertools.product(rates if len(rates) > 1 else (), CHOOSING.get(self.name, (0,))):
            self.point(kind, way, rate, seed, **adapter)
        settings = {"rank": None, "alpha": None, "targets": "all"} | adapter
        chosen = self.chosen(rates, way=way, **settings) if len(rates) > 1 else rates[0]
        for seed in JUDGING:
            self.point("fresh", way, chosen, seed, parts=PARTS, **adapter)

    def main(self):
        """Full fine-tuning, LoRA, the head alone, and LoRA on a random base, with the same number of rates."""
        lora = dict(rank=RANK, alpha=ALPHA)
        self.choose_and_judge("grid", "LoRA", self.rates("LoRA"), **lora)
        self.choose_and_judge("grid", "full", self.rates("full"))
        self.choose_and_judge("grid", "head only", self.rates("head only"))
        self.choose_and_judge("grid", "LoRA on a random base", self.rates("LoRA"), **lora)

    def targets_(self):
        """Attention only, instead of every linear layer, at the rate of every layer."""
        rates = self.rates("LoRA")
        if len(rates) > 1:
            rates = [self.chosen(rates, way="LoRA", rank=RANK, alpha=ALPHA, targets="all")]
        self.choose_and_judge("targets", "LoRA", rates, rank=RANK, alpha=ALPHA, targets="attention")

    def even(self):
        """The same with a rate of its own, and with about as many parameters as rank 16 has on all layers."""
        self.choose_and_judge("targets", "LoRA", self.rates("LoRA"), rank=RANK, alpha=ALPHA, targets="attention")
        rank = round(RANK * trained_by(self, "all", RANK) / trained_by(self, "attention", RANK))
        self.choose_and_judge("targets", "LoRA", self.rates("LoRA"), rank=rank, alpha=ALPHA, targets="attention")

    def rank(self):
        """Rank and rate at a fixed alpha."""
        ranks, rates = RANKS.get(self.name, ()), self.rates("LoRA")
        for seed, rank, rate in itertools.product(CHOOSING.get(self.name, (0, 1, 2)), ranks, rates):
            if not self.means(way="LoRA", rank=rank, alpha=ALPHA, seed=seed, targets="all").get(rate):
                self.point("rank", "LoRA", rate, seed, rank=rank, alpha=ALPHA)

    def relatives(self):
        """The relatives of LoRA in 04b, on the tiny model, at rank 4 and alpha 8."""
        for way, rates in RELATIVES.items():
            adapter = dict(rank=4, alpha=8) if way in LORA_LIKE else {}
            self.choose_and_judge("grid", way, rates, **adapter)


def targets_of(model):
    """Names of the linear layers in the blocks, as `target_modules` takes them: all, those of attention, of the MLP."""
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    blocks = [name for name in names if re.search(r"\.\d+\.", name)]
    attention = [name for name in blocks if re.search(r"\.(attn|attention|self_attn)\.", name)]
    parts = {"all": blocks, "attention": attention, "mlp": [name for name in blocks if name not in attention]}
    return {part: sorted({short(name, names, members) for name in members}) for part, members in parts.items()}


def short(name, every, members):
    """The shortest ending of a layer's name that names no layer outside its part."""
    words = name.split(".")
    for start in range(len(words) - 1, -1, -1):
        ending = ".".join(words[start:])
        if all(other in members for other in every if other.endswith(f".{ending}")):
            return ending
    return name


def trained_by(sweep, targets, rank):
    """How many parameters an adapter adds."""
    model = sweep.adapted("LoRA", 0, rank=rank, targets=targets)
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)


# ---- Memory of models of the usual sizes, predicted for a GPU ----

KINDS = ("full", "LoRA", "LoRA, dropout 0.1")
REAL = {"BERT base": (BertConfig, ["query", "value", "dense"]), "7B": (LlamaConfig, "all-linear")}
FITS = [dict(model="BERT base", batch=16, length=length, dtype="float32") for length in (64, 512)]
FITS += [dict(model="7B", batch=1, length=512, dtype="bfloat16", activation_checkpointing=on) for on in (False, True)]
FITS += [dict(model="7B", batch=1, length=512, dtype="float32", activation_checkpointing=True, autocast="bfloat16")]


def fit_point(model, way, batch, length, **options):
    """Predicted peak in GiB for a GPU, and the part that gradients and the optimizer have in it."""
    shape, targets = REAL[model]
    task = "SEQ_CLS" if model == "BERT base" else "CAUSAL_LM"
    adapter = LoraConfig(task_type=task, r=16, target_modules=targets, lora_dropout=0.1 if "dropout" in way else 0.0)
    peft_config = None if way == "full" else adapter
    found = memory.predict(shape(), batch=batch, length=length, peft=peft_config, task=task, **options)
    state = found.split["gradients"] + found.split["optimizer"]
    return {"peak_gib": found.peak_gib, "state_gib": state / 2**30, "trainable": found.trainable}


def fits():
    for point in [one | dict(way=way) for one in FITS for way in KINDS]:
        name = "fit-" + "-".join(str(value) for value in point.values()).replace(" ", "-").replace(",", "")
        if not (RESULTS / f"{name}.json").exists():
            about = dict(machine=env.machine(), versions=env.versions())
            record.save(RESULTS, name, settings=point, metrics=fit_point(**point), **about)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    kinds = ["main", "targets", "rank", "even", "relatives", "fits"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    given = parser.parse_args(arguments)
    env.quiet()
    for model in given.models:
        sweep = Sweep(model)
        steps = dict(main=sweep.main, targets=sweep.targets_, rank=sweep.rank, even=sweep.even, fits=fits)
        steps |= {"relatives": sweep.relatives} if sweep.name == "tiny-encoder" else {}
        for kind in given.only:
            steps.get(kind, lambda: None)()


if __name__ == "__main__":
    main()
