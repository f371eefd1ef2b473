"""Adapters before and after training: what one would train, and whether a saved one fits a base.

    adapters.plan(BertConfig(), LoraConfig(task_type="SEQ_CLS"))    # names and counts, from the configuration alone
    adapters.check_fits("runs/my-adapter", base)                    # an error for an adapter of another base

The plan builds the model with shapes only (torch's meta device) and lets peft put the adapter in, so what peft would do
is what it counts. Making, saving and loading an adapter stays with peft.
"""

import copy
import itertools
import json
import re
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

TASKS = {  # peft's names, and the classes that it wraps
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


# ---- Before training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What an adapter would train: `rows` (one for each kind of layer), `adapter`, `whole`, `trainable`, `total`.

    `adapter` counts the parameters that the method adds, `whole` those of layers that are trained whole, such as the
    head.

    >>> Plan("LoraConfig on BERT", adapter=90, whole=10, total=1000).share
    0.1
    """

    title: str
    adapter: int
    whole: int
    total: int
    rows: list = field(default_factory=list)

    @property
    def trainable(self):
        return self.adapter + self.whole

    @property
    def share(self):
        return self.trainable / self.total

    def __repr__(self):
        import pandas as pd

        title = f"{self.title}: {self.trainable:,} of {self.total:,} parameters ({self.share:.3%})"
        table = pd.DataFrame(self.rows, columns=["layer", "layers", "shape", "trained", "whole"]).set_index("layer")
        return f"{title}\n{table.to_string(index_names=False, formatters={'trained': '{:,}'.format})}"


def plan(model, peft):
    """Which layers an adapter would be put into and how many parameters it would train, from a configuration alone.

    `model` is a transformers configuration, a folder or a Hub id; `peft` a peft configuration with its `task_type`.
    `ValueError` for what would go wrong later or, worse, silently: a target that is the name of no layer, a rank above
    the smaller side of a matrix, no `task_type` (peft would then leave the new head frozen).

    >>> from peft import LoraConfig
    >>> from transformers import BertConfig
    >>> plan(BertConfig(num_hidden_layers=2), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"]))
    LoraConfig on BertForSequenceClassification: 185,858 of 38,790,916 parameters (0.479%)
                                                 layers     shape trained  whole
    bert.encoder.layer.*.attention.self.query         2   768x768  24,576  False
    bert.encoder.layer.*.attention.output.dense       2   768x768  24,576  False
    bert.encoder.layer.*.intermediate.dense           2  3072x768  61,440  False
    bert.encoder.layer.*.output.dense                 2  768x3072  61,440  False
    bert.pooler.dense                                 1   768x768  12,288  False
    classifier                                        1     2x768   1,538   True

    Taught in notebooks/04_lora.ipynb, "Round 2: which layers did you just name?".
    """
    import torch
    import transformers

    from . import memory

    config = memory.configuration(model)
    task = getattr(peft.task_type, "value", peft.task_type)
    if task not in TASKS:
        raise ValueError(
            f'{type(peft).__name__} has task_type={task!r}: pass task_type="SEQ_CLS" or another of {", ".join(TASKS)}. '
            "Without it peft trains the adapter only, and a new head stays as random as it is."
        )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on a model that is only counted
        network = getattr(transformers, TASKS[task]).from_config(config)
        title = f"{type(peft).__name__} on {type(network).__name__}"
        layers = [(name, getattr(layer, "weight", None)) for name, layer in network.named_modules()]
        shapes = {name: "x".join(map(str, weight.shape)) for name, weight in layers if weight is not None}
        _check_targets(network, peft)
        wrapped = _attached(network, peft)
    _check_ranks(wrapped)
    rows = _rows(wrapped, shapes)
    whole = sum(row["trained"] for row in rows if row["whole"])
    adapter = sum(row["trained"] for row in rows if not row["whole"])
    return Plan(title, adapter, whole, sum(parameter.numel() for parameter in wrapped.parameters()), rows)


def _attached(network, config):
    """What `get_peft_model` returns, for a model that is only there to be counted."""
    import peft

    choice = _choice(network)
    try:
        return peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[config.task_type](network, copy.deepcopy(config))
    except ValueError as error:
        if "target_modules" not in str(error):
            raise
        kind = network.config.model_type
        raise ValueError(f"peft has no default layers for {kind} with {type(config).__name__}. {choice}") from error


def _choice(network):
    return f'target_modules can be "all-linear" or a list of: {", ".join(_candidates(network))}.'


def _candidates(network):
    """The last names of the layers that a method could be put into: linear ones, and GPT-2's Conv1D."""
    names = [name for name, m in network.named_modules() if hasattr(m, "in_features") or type(m).__name__ == "Conv1D"]
    return sorted({name.rpartition(".")[2] for name in names})


# get_peft_model adds these to modules_to_save, whether they are there or not
HEADS = ("classifier", "score", "qa_outputs")


def _check_targets(network, config):
    """Every target must be the name, or the end of the name, of a layer; peft asks that of one of them only."""
    targets = getattr(config, "target_modules", None) or "all-linear"
    names = [name for name, _ in network.named_modules()]
    ends = [name for name in getattr(config, "modules_to_save", None) or () if name not in HEADS]
    if isinstance(targets, str):
        matches = targets == "all-linear" or any(re.fullmatch(targets, name) for name in names)
        missing = [] if matches else [targets]
    else:
        ends, missing = [*ends, *sorted(targets)], []
    missing += [end for end in ends if not any(f".{name}".endswith(f".{end}") for name in names)]
    if missing:
        close = ", ".join(match for name in missing for match in get_close_matches(name, _candidates(network), 1))
        hint = f" (closest: {close})" if close else ""
        raise ValueError(f"{type(network).__name__} has no layer named {', '.join(missing)}{hint}. {_choice(network)}")


def _check_ranks(wrapped):
    """A product of two thin matrices has at most the rank of the full one; beyond it they are thin no more."""
    too_large = {}  # each kind of layer once, with its smaller side
    for name, layer in wrapped.named_modules():
        if isinstance(getattr(layer, "r", None), dict) and hasattr(layer, "in_features"):
            rank, side = max(layer.r.values()), min(layer.in_features, layer.out_features)
            if rank > side:
                too_large[f"{name.rpartition('.')[2]}: rank {rank}, smaller side {side}"] = side
    if too_large:
        raise ValueError(
            f"the rank is larger than the matrix ({', '.join(too_large)}). Pass r={min(too_large.values())} or less, "
            "a rank_pattern, or leave these layers out of target_modules."
        )


def _rows(wrapped, shapes):
    """What is trained, by layer; layers that differ only in their number are one row."""
    trained, layers, shape_of = Counter(), defaultdict(set), {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            layer = _layer_of(name, shapes)
            kind = re.sub(r"\.\d+\.", ".*.", layer), ".modules_to_save." in name
            trained[kind] += parameter.numel()
            layers[kind].add(layer)
            shape_of.setdefault(kind, shapes.get(layer, ""))
    return [
        dict(layer=kind[0], layers=len(layers[kind]), shape=shape_of[kind], trained=trained[kind], whole=kind[1])
        for kind in trained
    ]


def _layer_of(name, shapes):
    """The layer of the base that a parameter of the adapter belongs to, or the first part of its own name."""
    name = re.sub(r"\.modules_to_save\.[^.]+", "", name).removeprefix("base_model.").removeprefix("model.")
    layer = name
    while layer not in shapes and "." in layer:
        layer = layer.rpartition(".")[0]
    return layer if layer in shapes else name.partition(".")[0]


def check_four_bit(device="cpu"):
    """An error when bitsandbytes cannot train on 4-bit weights on this device; it tries a tiny one.

    >>> check_four_bit("cpu")

    Taught in notebooks/05_qlora.ipynb, "A real four-bit model".
    """
    import torch

    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to(device)
        rows = torch.ones(2, 64, device=device, requires_grad=True)
        layer(rows).sum().backward()
        rows.grad.sum().item()
    except (ImportError, RuntimeError, AssertionError, AttributeError) as error:
        raise ValueError(
            f'bitsandbytes cannot train on 4-bit weights on "{device}": {error}. If it is missing, `pip install '
            "bitsandbytes` (Linux, Windows, macOS); `python -m bitsandbytes` says which devices it supports. LoRA "
            "without quantisation needs none (notebook 04)."
        ) from error


# ---- After training -------------------------------------------------------------------------------------


def check_fits(folder, model, *, any_name=False):
    """An error when a saved adapter is not for this base: another model, other sizes, another number of labels.

    `folder` is what `save_pretrained` of a peft model wrote, `model` the base that it shall go on, or a PeftModel. It
    compares the name that the adapter has of its base (its last part; `any_name=True` for a base that was renamed) and
    every shape. Two bases of one name and one shape it cannot tell apart: notebook 06 does, with a manifest.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> check_fits("no-such-folder", BertForSequenceClassification(BertConfig(num_hidden_layers=1)))
    Traceback (most recent call last):
    ValueError: no-such-folder holds no adapter: no adapter_config.json, no weights. Pass what save_pretrained wrote.

    Taught in notebooks/04_lora.ipynb, "The life of an adapter".
    """
    config, shapes = _read(Path(folder))
    folder, base = Path(folder).name, model.get_base_model() if hasattr(model, "get_base_model") else model
    marks = ("lora_", "ia3_", "modules_to_save")
    if base is model and any(mark in name for mark in marks for name, _ in base.named_parameters()):
        raise ValueError(
            "this base carries the layers of adapters already, so a second PeftModel on it would change the first. Put "
            "the next adapter into the PeftModel that you have: model.load_adapter(folder, name)."
        )
    trained_on, name = (Path(name or "").name for name in (config.get("base_model_name_or_path"), base.name_or_path))
    if trained_on and name and trained_on != name and not any_name:
        raise ValueError(
            f'the adapter in {folder} was trained on "{trained_on}", this base is "{name}". Load it on "{trained_on}"; '
            "if that is the same model under another name, pass any_name=True."
        )
    weights = {name.replace(".original_module", ""): p.shape for name, p in base.named_parameters()}
    modules, n_words = dict(base.named_modules()), base.get_input_embeddings().weight.shape[0]
    tokens = config.get("trainable_token_indices") or []  # whose rows of the embeddings are trained by themselves
    n_tokens = 1 + max(itertools.chain(*tokens.values()) if isinstance(tokens, dict) else tokens, default=0)
    if n_tokens > n_words:
        raise ValueError(f"the adapter in {folder} has the new token {n_tokens - 1}, {_grow(n_tokens, n_words)}")
    for key, shape in sorted(shapes.items(), key=lambda item: ".lora_" not in item[0]):  # sizes first, then the head
        message = _misfit(key.removeprefix("base_model.model."), shape, modules, weights, n_words)
        if message:
            kind = TASKS.get(config.get("task_type"))
            hint = (
                f" If not: load the base with {kind}, which it was trained in." if kind and "lacks" in message else ""
            )
            raise ValueError(f"the adapter in {folder} {message}{hint}")


def _read(folder):
    """The configuration of a saved adapter, and the shape of each of its tensors."""
    from safetensors import safe_open

    files = {"adapter_config.json": folder / "adapter_config.json", "weights": folder / "adapter_model.safetensors"}
    if missing := [f"no {name}" for name, file in files.items() if not file.exists()]:
        raise ValueError(f"{folder.name} holds no adapter: {', '.join(missing)}. Pass what save_pretrained wrote.")
    try:
        with safe_open(files["weights"], framework="np") as saved:
            shapes = {key: saved.get_slice(key).get_shape() for key in saved.keys()}  # noqa: SIM118, it is no dict
    except Exception as error:  # safetensors has an error of its own, and OSError
        raise ValueError(f"the weights in {folder.name} cannot be read ({error}): copy the file again.") from error
    return json.loads(files["adapter_config.json"].read_text(encoding="utf-8")), shapes


def _grow(n, n_words):
    return (
        f"this base has {n_words} tokens: tokens were added. Load the tokenizer that was trained with it, and call "
        f"base.resize_token_embeddings({n})."
    )


def _sides(layer):
    """Inputs and outputs of a layer; the weight of an embedding and of GPT-2's Conv1D has them in this order."""
    layer = getattr(layer, "base_layer", layer)
    return (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else tuple(layer.weight.shape)


def _misfit(key, shape, modules, weights, n_words):
    """Why a tensor of an adapter cannot be on the base: it is a half of LoRA's product, or of a layer trained whole."""
    half = re.fullmatch(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?", key)
    layer = half[1] if half else key.partition(".")[0]
    if layer not in modules and (half or "." in key):
        return f"has the layer {layer}, which this base lacks: it is of another model."
    if half:
        is_a, (inputs, outputs) = half[2] == "A", _sides(modules[layer])
        expected, size = (shape[1], inputs) if is_a else (shape[0], outputs)
        if is_a and expected != size == n_words:
            return f"has {layer} with {expected} tokens, {_grow(expected, n_words)}"
        sides = f"{layer} with {expected} {'inputs' if is_a else 'outputs'}, this base has {size}"
        return f"expects {sides}: it is of a model of another size." if expected != size else None
    if key in weights and shape[1:] != list(weights[key][1:]):
        return f"has {key} of {shape}, this base of {list(weights[key])}: it is of a model of another size."
    if key in weights and shape[0] != weights[key][0]:
        if weights[key][0] == n_words:
            return f"has {key} with {shape[0]} rows, {_grow(shape[0], n_words)}"
        return (
            f"has {key} with {shape[0]} rows, this base with {weights[key][0]}: they have another number of labels. "
            f"Load the base with num_labels={shape[0]}."
        )
    return None
