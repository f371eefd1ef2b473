"""Adapters before and after training: what one would train, whether a saved one fits, whether it does what it did.

    adapters.plan(BertConfig(), LoraConfig(task_type="SEQ_CLS"))    # names and counts, from the configuration alone
    adapters.check_fits("runs/my-adapter", base)                    # an error for an adapter of another base
    adapters.life(model, batch, base=base, reloaded=reloaded)       # largest differences of the logits
    adapters.add(model, "titles", "runs/titles")                    # one more adapter on a base that serves others

The plan builds the model with shapes only (torch's meta device) and lets peft put the adapter in, so what peft would do
is what it counts. Making, saving and loading an adapter stays with peft.
"""

import copy
import hashlib
import json
import re
import warnings
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

    `adapter` counts the numbers that the method adds, `whole` those of layers that are trained whole, such as the head.

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
        width = max([len(row["layer"]) for row in self.rows], default=0)
        lines = [f"{self.title}: {self.trainable:,} of {self.total:,} parameters ({self.share:.3%})"]
        for row in self.rows:
            lines.append(f"  {row['layer']:{width}}  {row['layers']:3} x {row['shape']:13} {row['trained']:>11,}")
            lines[-1] += "  whole" if row["whole"] else ""
        return "\n".join(lines)


def plan(model, peft):
    """Which layers an adapter would be put into and how many numbers it would train, from a configuration alone.

    `model` is a transformers configuration, a folder or a Hub id; `peft` a peft configuration with its `task_type`.
    `ValueError` for what would go wrong later or, worse, silently: a target that is the name of no layer, a rank above
    the smaller side of a matrix, no `task_type` (peft would then leave the new head frozen).

    >>> from peft import LoraConfig
    >>> from transformers import BertConfig
    >>> plan(BertConfig(num_hidden_layers=2), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"]))
    LoraConfig on BertForSequenceClassification: 185,858 of 38,790,916 parameters (0.479%)
      bert.encoder.layer.*.attention.self.query      2 x 768x768            24,576
      bert.encoder.layer.*.attention.output.dense    2 x 768x768            24,576
      bert.encoder.layer.*.intermediate.dense        2 x 3072x768           61,440
      bert.encoder.layer.*.output.dense              2 x 768x3072           61,440
      bert.pooler.dense                              1 x 768x768            12,288
      classifier                                     1 x 2x768               1,538  whole

    Taught in notebooks/04_lora.ipynb, "Round 2: which layers did you just name?".
    """
    import torch
    import transformers

    config = _configuration(model)
    task = getattr(peft.task_type, "value", peft.task_type)
    if task not in TASKS:
        raise ValueError(
            f'{type(peft).__name__} has task_type={task!r}: pass task_type="SEQ_CLS" or another of {", ".join(TASKS)}. '
            "Without it peft trains the adapter only, and a new head stays as random as it is."
        )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on a model that is only counted
        network = getattr(transformers, TASKS[task]).from_config(config)
        kinds = {name: type(module).__name__ for name, module in network.named_modules()}
        shapes = {name: "x".join(map(str, m.weight.shape)) for name, m in network.named_modules() if _weight(m)}
        _check_targets(network, peft)
        wrapped = _attached(network, peft)
    _check_ranks(wrapped)
    title = f"{type(peft).__name__} on {kinds['']}"
    return _counted(title, wrapped, shapes)


def _configuration(model):
    """A configuration, from an object, a folder or a Hub id."""
    import transformers

    if isinstance(model, transformers.PreTrainedConfig):
        return copy.deepcopy(model)
    try:
        read, _ = transformers.PreTrainedConfig.get_config_dict(str(model))
    except OSError as error:
        raise ValueError(
            f'no configuration for "{model}": pass a transformers configuration, a folder with a config.json or a Hub '
            "id. The configuration of a model that you have is model.config."
        ) from error
    return transformers.CONFIG_MAPPING[read["model_type"]].from_dict(read)


def _weight(module):
    return getattr(module, "weight", None) is not None


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
    found = [name for name, m in network.named_modules() if hasattr(m, "in_features") or type(m).__name__ == "Conv1D"]
    return sorted({name.rpartition(".")[2] for name in found})


def _check_targets(network, config):
    """Every target must be the name, or the end of the name, of a layer; peft asks that of one of them only."""
    wanted = getattr(config, "target_modules", None)
    names = [name for name, _ in network.named_modules()]
    if wanted is None or wanted == "all-linear":
        return
    if isinstance(wanted, str):
        missing = [] if any(re.fullmatch(wanted, name) for name in names) else [wanted]
    else:
        missing = [t for t in sorted(wanted) if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        close = [match for name in missing for match in get_close_matches(name, _candidates(network), 1)]
        hint = f" (closest: {', '.join(close)})" if close else ""
        raise ValueError(f"{type(network).__name__} has no layer named {', '.join(missing)}{hint}. {_choice(network)}")


def _check_ranks(wrapped):
    """A product of two thin matrices has at most the rank of the full one; beyond it they are thin no more."""
    wide = {}
    for name, module in wrapped.named_modules():
        ranks = getattr(module, "r", None)
        if isinstance(ranks, dict) and hasattr(module, "in_features"):
            rank, side = max(ranks.values()), min(module.in_features, module.out_features)
            if rank > side:
                wide[name.rpartition(".")[2]] = (rank, side)
    if wide:
        told = ", ".join(f"{name}: rank {rank}, smaller side {side}" for name, (rank, side) in wide.items())
        raise ValueError(
            f"the rank is larger than the matrix ({told}). Pass r={min(side for _, side in wide.values())} or less, "
            "a rank_pattern, or leave these layers out of target_modules."
        )


def _counted(title, wrapped, shapes):
    """The trainable numbers, by the layer that they belong to; layers that differ in their number only are one row."""
    rows, adapter, whole, total = {}, 0, 0, 0
    for name, parameter in wrapped.named_parameters():
        total += parameter.numel()
        if not parameter.requires_grad:
            continue
        in_whole = ".modules_to_save." in name
        owner = _owner(name, shapes)
        kind = re.sub(r"\.\d+\.", ".*.", owner)
        row = rows.setdefault((kind, in_whole), {"names": set(), "shape": shapes.get(owner, ""), "trained": 0})
        row["names"].add(owner)
        row["trained"] += parameter.numel()
        adapter, whole = (adapter, whole + parameter.numel()) if in_whole else (adapter + parameter.numel(), whole)
    table = [
        {
            "layer": kind,
            "layers": len(row["names"]),
            "shape": row["shape"],
            "trained": row["trained"],
            "whole": in_whole,
        }
        for (kind, in_whole), row in rows.items()
    ]
    return Plan(title, adapter, whole, total, table)


def _owner(name, shapes):
    """The layer of the base that a parameter of the adapter belongs to, or the first part of its own name."""
    name = re.sub(r"\.modules_to_save\.[^.]+", "", name)
    parts = name.removeprefix("base_model.").removeprefix("model.").split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in shapes:
            return ".".join(parts[:end])
    return parts[0]


def check_four_bit(device="cpu"):
    """An error when bitsandbytes cannot train on 4-bit weights on this device; it tries a tiny one.

    >>> check_four_bit("cpu")

    Taught in notebooks/05_qlora.ipynb, "A real four-bit model".
    """
    import torch

    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            "bitsandbytes is not installed, so no 4-bit weights can be trained. It has packages for Linux, Windows and "
            "macOS: `pip install bitsandbytes`. LoRA on a base of 16 bits needs none (notebook 04)."
        ) from error
    try:
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to(device)
        rows = torch.ones(2, 64, device=device, requires_grad=True)
        layer(rows).sum().backward()
        rows.grad.sum().item()
    except (RuntimeError, NotImplementedError, AssertionError, AttributeError) as error:
        raise ValueError(
            f'bitsandbytes {bitsandbytes.__version__} has no 4-bit kernel that works on "{device}": {error}. Train on '
            "a device that it supports (`python -m bitsandbytes` says what it finds), or use LoRA without quantisation."
        ) from error


# ---- After training -------------------------------------------------------------------------------------


def check_fits(folder, model, *, any_name=False):
    """An error when a saved adapter is not for this base: another model, other sizes, another number of labels.

    `folder` is what `save_pretrained` of a peft model wrote, `model` the base that it shall go on. It compares the name
    that the adapter has of its base (its last part; `any_name=True` for a base that was renamed) and every shape. Two
    bases of one name and one shape are told apart if the adapter was signed (see `sign`), and so is a damaged file.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> check_fits("no-such-folder", BertForSequenceClassification(BertConfig(num_hidden_layers=1)))
    Traceback (most recent call last):
    ValueError: no-such-folder holds no adapter: no adapter_config.json, no weights. Pass what save_pretrained wrote.

    Taught in notebooks/04_lora.ipynb, "The life of an adapter".
    """
    from safetensors import safe_open

    folder = Path(folder)
    files = {"adapter_config.json": folder / "adapter_config.json", "weights": folder / "adapter_model.safetensors"}
    if missing := [f"no {name}" for name, file in files.items() if not file.exists()]:
        raise ValueError(f"{folder.name} holds no adapter: {', '.join(missing)}. Pass what save_pretrained wrote.")
    config = json.loads(files["adapter_config.json"].read_text(encoding="utf-8"))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base is model and any(_of_adapter(name) for name, _ in base.named_parameters()):
        raise ValueError(
            "this base carries the layers of adapters already, so a second PeftModel on it would change the first. Put "
            "the next adapter into the PeftModel that you have: model.load_adapter(folder, name), or adapters.add."
        )
    named, have = (Path(name or "").name for name in (config.get("base_model_name_or_path"), base.name_or_path))
    if named and have and named != have and not any_name:
        raise ValueError(
            f'the adapter in {folder.name} was trained on "{named}", this base is "{have}". Load it on "{named}"; if '
            "that is the same model under another name, pass any_name=True."
        )
    modules = dict(base.named_modules())
    weights = {name.replace(".original_module", ""): p.shape for name, p in base.named_parameters()}
    try:
        with safe_open(files["weights"], framework="np") as saved:
            shapes = {key: saved.get_slice(key).get_shape() for key in saved.keys()}  # noqa: SIM118, it is no dict
    except Exception as error:  # safetensors has an error of its own, and OSError
        raise ValueError(f"the weights in {folder.name} cannot be read ({error}): copy the file again.") from error
    _check_manifest(folder, base)
    for key, shape in sorted(shapes.items(), key=lambda item: ".lora_" not in item[0]):  # sizes first, then the head
        _check_shape(folder.name, key.removeprefix("base_model.model."), shape, modules, weights)


def _check_manifest(folder, base):
    """The file against its own hash, the base against the one that the adapter was signed for; where it was signed."""
    if not (folder / MANIFEST).exists():
        return
    signed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if (found := _file_hash(folder / "adapter_model.safetensors")) != signed["weights_sha256"]:
        raise ValueError(
            f"the weights in {folder.name} are not those that were signed: sha256 {found[:8]}, {MANIFEST} says "
            f"{signed['weights_sha256'][:8]}. Copy the folder again, or sign it if you changed it yourself."
        )
    if (found := fingerprint(base)) != signed["base_sha256"]:
        raise ValueError(
            f"the adapter in {folder.name} belongs to a base with the fingerprint {signed['base_sha256'][:8]} "
            f'("{signed["base"]}"), this one has {found[:8]}: other weights, or others in their dtype.'
        )


def _check_shape(folder, key, shape, modules, weights):
    """One tensor of an adapter against the base: a half of LoRA's product, or a layer that was trained whole."""
    half = re.fullmatch(r"(.+)\.lora_([AB])\.weight", key)
    if half and half[1] not in modules:
        raise ValueError(
            f"the adapter in {folder} has the layer {half[1]}, which this base lacks: it is of another model."
        )
    if half:
        module = modules[half[1]]
        found, wanted = (shape[1], module.in_features) if half[2] == "A" else (shape[0], module.out_features)
        if found != wanted:
            raise ValueError(
                f"the adapter in {folder} expects {half[1]} with {found} {'inputs' if half[2] == 'A' else 'outputs'}, "
                f"this base has {wanted}: it is of a model of another size."
            )
    elif key in weights and shape[1:] != list(weights[key][1:]):
        raise ValueError(
            f"the adapter in {folder} has {key} of {shape}, this base of {list(weights[key])}: it is of a model of "
            "another size."
        )
    elif key in weights and shape[0] != weights[key][0]:
        raise ValueError(
            f"the adapter in {folder} has {key} with {shape[0]} rows, this base with {weights[key][0]}: they have "
            f"another number of labels. Load the base with num_labels={shape[0]}."
        )


def life(model, batch, *, base, reloaded):
    """What becomes of an adapter's answers: the largest difference of the logits at each station of its life.

    `model` is the trained peft model, `base` the same base without an adapter (for a classifier, with the same head as
    before training), `reloaded` the adapter saved and loaded on another copy of the base. Returns a dict: "trained"
    (model against base: it should be far from 0), then what should be near 0: "reloaded", "switched off" (against the
    base), "merged" and "unmerged" (against the model); None for what peft cannot do with this method. All in evaluation
    mode; the model is left as it was.

    >>> import copy, peft, torch, transformers
    >>> small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    >>> base = transformers.BertForSequenceClassification(transformers.BertConfig(**small)).eval()
    >>> lora = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False)
    >>> model = peft.PeftModelForSequenceClassification(copy.deepcopy(base), lora)
    >>> found = life(model, {"input_ids": torch.ones(2, 5, dtype=torch.long)}, base=base, reloaded=copy.deepcopy(model))
    >>> {station: difference < 1e-5 for station, difference in found.items()}
    {'trained': False, 'reloaded': True, 'switched off': True, 'merged': True, 'unmerged': True}

    Taught in notebooks/04_lora.ipynb, "The life of an adapter".
    """
    training = [module for module in model.modules() if module.training]
    try:
        answers = _logits(model, batch)
        without = _logits(base, batch)
        found = {"trained": _apart(answers, without), "reloaded": _apart(answers, _logits(reloaded, batch))}
        found |= {"switched off": None, "merged": None, "unmerged": None}
        prompt = model.active_peft_config.is_prompt_learning
        if not prompt or hasattr(model, "prepare_inputs_for_generation"):  # peft asks for it, classifiers have none
            with model.disable_adapter():
                found["switched off"] = _apart(without, _logits(model, batch))
        if hasattr(model.base_model, "merge_adapter"):
            model.base_model.merge_adapter()
            try:
                found["merged"] = _apart(answers, _logits(model, batch))
            finally:
                model.base_model.unmerge_adapter()
            found["unmerged"] = _apart(answers, _logits(model, batch))
    finally:
        for module in training:
            module.training = True
    return found


def _logits(model, batch):
    import torch

    device = next(model.parameters()).device
    with torch.no_grad():
        return model.eval()(**{name: value.to(device) for name, value in batch.items()}).logits.float().cpu()


def _apart(one, other):
    return (one - other).abs().max().item()


# ---- Many adapters on one base --------------------------------------------------------------------------

MANIFEST = "manifest.json"


def _of_adapter(name):
    """Whether a parameter belongs to an adapter, by its name in peft."""
    return any(part.startswith(("lora_", "ia3_")) or part == "modules_to_save" for part in name.split("."))


def _file_hash(file):
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(model):
    """The sha256 of a base's weights as they are in memory; adapters on it, and a head, do not count.

    The same weights in another dtype, or with an adapter merged into them, have another fingerprint.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    >>> model = BertForSequenceClassification(small)
    >>> before = fingerprint(model)
    >>> before == fingerprint(model), before == fingerprint(model.half())
    (True, False)

    Taught in notebooks/06_multi_adapter.ipynb, "A manifest".
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    digest = hashlib.sha256()
    for name, tensor in sorted(base.base_model.state_dict().items()):
        if not _of_adapter(name):
            about = f"{name.replace('.base_layer', '')} {tensor.dtype} {tuple(tensor.shape)}"
            digest.update(about.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def sign(folder, model, **about):
    """Writes `manifest.json` beside a saved adapter: the fingerprint of its base and the hash of its own weights.

    `about` is what you want to say besides, such as version=2. Returns what was written. `check_fits` then knows
    another base of the same name and shape, and a file that was damaged on its way.

    >>> sign("no-such-folder", None)
    Traceback (most recent call last):
    ValueError: no-such-folder holds no adapter_model.safetensors. Pass what save_pretrained wrote.

    Taught in notebooks/06_multi_adapter.ipynb, "A manifest".
    """
    folder = Path(folder)
    if not (folder / "adapter_model.safetensors").exists():
        raise ValueError(f"{folder.name} holds no adapter_model.safetensors. Pass what save_pretrained wrote.")
    name = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    written = {"base": Path(name or "").name, "base_sha256": fingerprint(model)}
    written |= {"weights_sha256": _file_hash(folder / "adapter_model.safetensors"), **about}
    (folder / MANIFEST).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return written


def add(model, name, folder):
    """One more adapter on a model that serves others: checked first, so that after an error all is as it was.

    `model` is the `PeftModel`; `name` must be new: peft would write over an adapter of that name without a word. The
    active adapter stays the active one.

    >>> add(None, "titles", "runs/titles")
    Traceback (most recent call last):
    ValueError: the model is NoneType and no PeftModel. Make one with the first adapter: PeftModel.from_pretrained(...).

    Taught in notebooks/06_multi_adapter.ipynb, "Add, replace, delete".
    """
    if not hasattr(model, "peft_config"):
        raise ValueError(
            f"the model is {type(model).__name__} and no PeftModel. Make one with the first adapter: "
            "PeftModel.from_pretrained(...)."
        )
    if name in model.peft_config:
        raise ValueError(f'there is an adapter "{name}" already. Take another name, or adapters.remove it first.')
    check_fits(folder, model)
    model.load_adapter(folder, name)


def use(model, name):
    """Makes an adapter the active one; an unknown name is an error that says which there are.

    >>> from types import SimpleNamespace
    >>> use(SimpleNamespace(peft_config={"titles": None, "intent": None}), "title")
    Traceback (most recent call last):
    ValueError: there is no adapter "title" (closest: titles). There are: titles, intent.

    Taught in notebooks/06_multi_adapter.ipynb, "Add, replace, delete".
    """
    _known(model, name)
    model.set_adapter(name)


def remove(model, name):
    """Deletes an adapter that is not the active one: peft would make another one active, and go on answering.

    >>> from types import SimpleNamespace
    >>> remove(SimpleNamespace(peft_config={"titles": None}, active_adapters=["titles"]), "titles")
    Traceback (most recent call last):
    ValueError: the adapter "titles" is active. Switch to another one first: adapters.use(model, name).

    Taught in notebooks/06_multi_adapter.ipynb, "Add, replace, delete".
    """
    _known(model, name)
    if name in model.active_adapters:
        raise ValueError(f'the adapter "{name}" is active. Switch to another one first: adapters.use(model, name).')
    model.delete_adapter(name)


def _known(model, name):
    if name not in model.peft_config:
        close = get_close_matches(name, model.peft_config, 1)
        hint = f" (closest: {close[0]})" if close else ""
        raise ValueError(f'there is no adapter "{name}"{hint}. There are: {", ".join(model.peft_config)}.')
