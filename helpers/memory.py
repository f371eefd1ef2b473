"""Where the memory of a training goes: predicted from a configuration, measured in a run, compared with a device.

    predicted = memory.predict(LlamaConfig(), batch=1, length=512, peft=LoraConfig(target_modules="all-linear"))
    memory.fits(predicted, 24)                       # GiB, or "cuda" for the device of this machine
    with memory.measure(model) as measured: ...      # or Trainer(..., callbacks=[memory.measure()])

A prediction needs no weights and no GPU. It builds the model with shapes only (torch's fake tensors), runs the passes
of one step and two steps of the optimizer, and adds up the storages that are alive; the passes of the second step are
those of the first, beside the optimizer's state. No formula estimates a size: all are of tensors that the libraries
make, and for CUDA a caching allocator without memory says what it would reserve for them. A measurement on a CPU is the
same sum over real tensors; on CUDA the peak is the allocator's. How near predictions come to what others measured on
GPUs is in data/results/published/comparison.json.

From top to bottom: predict; the model without values; its optimizers (a new one goes there); its training; measure;
fits; the ledger, which predictions and measurements share; texts.
"""

import bisect
import contextlib
import copy
import math
import os
import re
import threading
import weakref
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import transformers
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, LoraConfig, PeftModel, prepare_model_for_kbit_training
from torch._C import _current_graph_task_id
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.optim import SGD, AdamW
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import masking_utils
from transformers.masking_utils import _ignore_causal_mask_sdpa, find_packed_sequence_indices
from transformers.optimization import Adafactor
from transformers.quantizers import AutoHfQuantizer

PARTS = (
    "weights",  # parameters and buffers
    "quantisation constants",
    "gradients",
    "optimizer",
    "activations",  # what the forward pass made, inputs included
    "recomputed activations",  # made again in the backward pass, by gradient checkpointing
    "temporaries",  # whatever else the backward pass and the step hold
)
GIB = 2**30
BLOCK = 512  # CUDA's allocator gives memory in blocks of this many bytes
WORKSPACE = (2 * 4096 + 8 * 16) * 2**10  # what cuBLAS takes of the allocator; 32 MiB on H100 (torch's CUDA notes)
STEPS = 2  # the first step makes the optimizer's state, the second one trains beside it
OUTSIDE_GIB = 0.5  # what CUDA takes beside the allocator; seen: 0.13 (T4), 0.44 (4090), 0.50 (L40), 0.74 (GH200)
SLACK = 0.06  # of what is reserved; of 109 published runs 3 of 103 took more (6 to 14 %), and 4 of 6 whose notes leave
# settings open (9, 15, 44 and 122 %; data/results/published/comparison.json)
CARDS = {  # GiB that torch reports: the least total in published out-of-memory messages (torch.mps' limit for Apple)
    "RTX 4060 (8 GB)": 7.6, "RTX 3060 (12 GB)": 11.6, "T4 (16 GB)": 14.56, "RTX 4080 (16 GB)": 15.6,
    "L4 (24 GB)": 22.03, "A10G (24 GB)": 22.05, "RTX 3090 (24 GB)": 23.55, "RTX 4090 (24 GB)": 23.52,
    "RTX 5090 (32 GB)": 31.3, "Apple (48 GB)": 37.44, "A100 (40 GB)": 39.25, "L40S (48 GB)": 44.34,
    "A100 (80 GB)": 79.14, "H100 (80 GB)": 79.14, "H200 (141 GB)": 139.72, "B200 (180 GB)": 178.35,
    "MI300X (192 GB)": 191.5,
}  # fmt: skip
SHORTEST = 64  # tokens; shorter rows are not proposed
TASKS = {  # peft's names of the tasks (it has none for masked language models), the models that do them, their class
    "SEQ_CLS": ("ForSequenceClassification", "SEQUENCE_CLASSIFICATION", "SequenceClassification"),
    "TOKEN_CLS": ("ForTokenClassification", "TOKEN_CLASSIFICATION", "TokenClassification"),
    "QUESTION_ANS": ("ForQuestionAnswering", "QUESTION_ANSWERING", "QuestionAnswering"),
    "MASKED_LM": ("ForMaskedLM", "MASKED_LM", "MaskedLM"),
    "CAUSAL_LM": (("ForCausalLM", "LMHeadModel"), "CAUSAL_LM", "CausalLM"),
    "SEQ_2_SEQ_LM": ("ForConditionalGeneration", "SEQ_TO_SEQ_CAUSAL_LM", "Seq2SeqLM"),
}


# ---- Predict ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What a training step will hold at its peak; all sizes in bytes. Shows as a short table.

    `split` has the parts at the peak, `phases` the highest point of the forward pass, the backward pass and the
    optimizer's step, `timeline` the same for each pass in turn, `assumes` what a real run may do differently.
    `reserved` is what CUDA's allocator takes for it, `logits` what an evaluation keeps, in words.

    >>> Prediction(peak=3 * 2**30, split={"weights": 2**30, "gradients": 2**31}, phase="step").peak_gib
    3.0
    """

    peak: int
    split: dict
    phase: str
    phases: dict = field(default_factory=dict)
    timeline: list = field(default_factory=list)
    trainable: int = 0
    total: int = 0
    device: str = "cuda"
    assumes: tuple = ()
    settings: dict = field(default_factory=dict, repr=False)
    reserved: int = 0
    logits: str | None = None  # of an evaluation

    @property
    def peak_gib(self):
        return self.peak / GIB

    @property
    def reserved_gib(self):
        return (self.reserved or self.peak) / GIB

    def __repr__(self):
        return _table(f"predicted for {self.device}", self)


def predict(
    model, *, batch, length, peft=None, quantization_config=None, task=None, dtype=None, optim="adamw_torch_fused",
    activation_checkpointing=False, gradient_accumulation_steps=1, autocast=None, padding=True, target_length=None,
    attn_implementation=None, prepare_kbit=True, adapter_dtype=None, outputs_kept=False, eval_batch=None,
    eval_rows=None, device="cuda",
):  # fmt: skip
    """The peak memory of training a model, and where it goes, from its configuration alone: no weights, no GPU.

    `model` is a transformers configuration, a folder or a Hub id; `peft` a peft configuration, `quantization_config` a
    `BitsAndBytesConfig` (the model is then prepared by peft's `prepare_model_for_kbit_training`). `batch` and `length`
    are rows and tokens of one forward pass, `target_length` the tokens of the labels of an encoder-decoder. `dtype` is
    that of the weights (the configuration's, or fp32), `autocast` that of mixed precision: two different things.
    `task` is one of `TASKS` (if not given: peft's, the architecture's or the usual one); `padding=False`: no row is
    padded, so no attention mask is needed. `optim`, `activation_checkpointing` and `gradient_accumulation_steps` are as
    in `TrainingArguments`. `prepare_kbit=False`: a 4-bit model keeps the rest in `dtype`, as TRL has it;
    `adapter_dtype` is that of what is trained (peft's usual: fp32). `outputs_kept`: the loop holds the model's outputs,
    and its cache, until the next forward pass has ended, as `outputs = model(...)` in a loop by hand does and the
    `Trainer` does not. `eval_batch`: an evaluation with so many rows follows; `eval_rows`: with `compute_metrics`,
    which keeps the logits of so many. `device` says whose operators to take: "cuda" or "cpu".
    `ValueError` for what cannot be built or trained.

    Other threads may train meanwhile; predictions take turns.

    >>> from transformers import BertConfig
    >>> small = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    >>> predicted = predict(small, batch=8, length=128)
    >>> predicted.phase, predicted.split["optimizer"] > 1.9 * predicted.split["weights"]
    ('backward', True)

    Taught in notebooks/03_full_fine_tuning.ipynb, "Round 1: the memory sum".
    """
    settings = dict(locals())
    _check_settings(settings)
    config = _training_configuration(model, outputs_kept)
    task = _task(config, task, peft)
    dtype, autocast = _dtype(dtype or config.dtype or "float32"), _dtype(autocast)
    network = _build(config, task, dtype, attn_implementation, peft, quantization_config, prepare_kbit, adapter_dtype)
    _check_length(network, config, max(length, target_length or 0), peft)
    operators = _Operators(device, autocast)
    if activation_checkpointing:
        network.activation_checkpointing_enable(operators.checkpointing())
    experts = any(type(module).__name__ == "ParamWrapper" for module in network.modules())  # peft's, refuses "meta"
    kind = "cpu" if device == "cpu" or experts else "meta"
    shapes = FakeTensorMode(allow_non_fake_inputs=True) if kind == "cpu" else contextlib.nullcontext()
    with shapes, torch.device(kind):
        _fill(network, dtype)
        inputs = _inputs(config, task, batch, length, target_length or length, padding)
        evaluated = _inputs(config, task, eval_batch, length, target_length or length, padding) if eval_batch else {}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZER_MAKERS[optim](trained, network, device == "cuda")
    ledger = _Ledger(kind, _Allocator() if device == "cuda" else None)
    watch = _Watch(network, ledger)
    with _masks_without_values(config.is_encoder_decoder), shapes, operators, watch:
        if device == "cuda":
            workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=kind)
            ledger.add(workspace, "temporaries")
        for tensor in inputs.values():
            ledger.add(tensor, "activations")
        try:
            _train(network, inputs, optimizer, gradient_accumulation_steps, operators, watch, outputs_kept)
        except Exception as error:
            raise _unpredictable(peft or config, error) from error
        logits = _evaluate(network, evaluated, eval_rows or 0, operators) if eval_batch else None
    ledger.close()
    return Prediction(
        ledger.peak, ledger.split, ledger.phase, ledger.phases, ledger.timeline, *_count(network), device,
        _assumptions(task, dtype, autocast, padding, quantization_config, prepare_kbit, device == "cuda"), settings,
        ledger.allocator.reserved if ledger.allocator else ledger.peak, logits,
    )  # fmt: skip


def _check_settings(settings):
    for name in ("batch", "length", "gradient_accumulation_steps", "target_length", "eval_batch", "eval_rows"):
        value, optional = settings[name], name in ("target_length", "eval_batch", "eval_rows")
        if not (value is None and optional) and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} is {value!r}; pass a whole number of at least 1.")
    if settings["optim"] not in OPTIMIZERS:
        raise ValueError(f"optim {settings['optim']!r} cannot be predicted: {', '.join(OPTIMIZERS)} can.")
    if settings["device"] not in ("cuda", "cpu"):
        raise ValueError(f'device {settings["device"]!r}: predictions are for "cuda" or "cpu".')
    if settings["quantization_config"] is not None and settings["peft"] is None:
        raise ValueError("4-bit weights cannot be trained: pass peft=LoraConfig(...) beside quantization_config.")


def _assumptions(task, dtype, autocast, padding, quantization_config, prepared, cuda):
    return (
        f"task {task}, weights in {str(dtype)[6:]}, {'autocast ' + str(autocast)[6:] if autocast else 'no autocast'}",
        "rows are padded: an attention mask is built" if padding else "no row is padded: no attention mask is built",
        "use_cache=False, as the Trainer sets it; gradients set to None after each step; checkpointing not reentrant",
        *([f"prepare_model_for_kbit_training called: {prepared}"] * (quantization_config is not None)),
        *(["CUDA's operators and allocator are imitated; held against published runs, not run on a GPU here"] * cuda),
        *(["no gradient scaler"] * (str(autocast) == "torch.float16")),
    )  # fmt: skip


# ---- The model: its configuration, and what from_pretrained and peft would make of it, without values --------


def configuration(model):
    """A copy of a transformers configuration, or the one in a folder or on the Hub.

    `ValueError` when there is none, or when it is of a kind that this transformers lacks.

    >>> from transformers import BertConfig
    >>> configuration(BertConfig(hidden_size=64)).hidden_size
    64
    """
    if isinstance(model, transformers.PreTrainedConfig):
        return copy.deepcopy(model)
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            f"model is {type(model).__name__}; pass a transformers configuration such as BertConfig(), a folder or a "
            "Hub id. The configuration of a model that you have is model.config."
        )
    try:
        return transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = re.split(r"\.\s|\n", str(error))[0]
        raise ValueError(
            f'no configuration for "{model}" that this transformers can read ({reason}). Pass a transformers '
            "configuration, a folder with a config.json or a Hub id; of a model that you have it is model.config."
        ) from error


def _training_configuration(model, use_cache=False):
    """The configuration as a training needs it: usually no cache of keys and values; a padding token."""
    config = configuration(model)
    config.use_cache = use_cache
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # classifiers on decoders look for it; memory does not depend on which one it is
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id
    return config


def _task(config, task, peft):
    """The task as peft names it: the given one, the peft config's, the architecture's, or the family's usual one."""
    known = [n for n, names in TASKS.items() if type(config) in getattr(transformers, f"MODEL_FOR_{names[1]}_MAPPING")]
    named = task or getattr(peft, "task_type", None)
    named = getattr(named, "value", named)
    for architecture in config.architectures or ():
        named = named or next((name for name in known if architecture.endswith(TASKS[name][0])), None)
    if named in known:
        return named
    if not known:
        raise ValueError(f"{type(config).__name__} has no model to fine-tune: none of the tasks {', '.join(TASKS)}.")
    if named:
        raise ValueError(f'task "{named}": there are {type(config).__name__} models for {", ".join(known)} only.')
    usual = ["SEQ_2_SEQ_LM"] if config.is_encoder_decoder else []
    usual += ["SEQ_CLS"] if "MASKED_LM" in known else ["CAUSAL_LM"]
    return next((name for name in usual if name in known), known[0])


def _dtype(value):
    """A torch dtype, from one or from its name."""
    dtype = getattr(torch, value, value) if isinstance(value, str) else value
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f'dtype "{value}" is none of torch\'s for weights: pass torch.float32, torch.bfloat16 ...')
    return dtype


def _build(config, task, dtype, attn_implementation, peft, quantization_config, prepare_kbit=True, adapter_dtype=None):
    """The model as `from_pretrained` and peft would give it, with shapes and no values."""
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    config.dtype = None  # transformers would make it torch's default dtype, for all threads; so it is set afterwards
    with torch.device("meta"):
        network = getattr(transformers, f"AutoModelFor{TASKS[task][2]}").from_config(config, **attention)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
        if quantization_config is not None:
            _quantize(network, quantization_config)
            if prepare_kbit:
                network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
        if peft is not None:
            network = _attach(network, copy.deepcopy(peft), autocast_adapter_dtype=adapter_dtype is None)
            for parameter in network.parameters() if adapter_dtype else ():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(_dtype(adapter_dtype))
    trained = [name for name, p in network.named_parameters() if type(p).__name__ == "Params4bit" and p.requires_grad]
    if trained:
        layers = sorted({name.split(".")[-4 if ".modules_to_save." in name else -2] for name in trained})
        raise ValueError(
            f"{', '.join(layers)} is to be trained and cannot be 4-bit. Pass llm_int8_skip_modules={layers} to "
            "BitsAndBytesConfig; names of your own replace its usual ones, such as lm_head."
        )
    return network.train()


def _quantize(network, quantization_config):
    """What transformers does before it loads weights: 4-bit layers for the linear ones that are not to be skipped."""
    if not quantization_config.load_in_4bit:
        raise ValueError("only load_in_4bit=True can be predicted; this quantization_config does not set it.")
    quantizer = AutoHfQuantizer.from_config(quantization_config, pre_quantized=False)
    quantizer.preprocess_model(model=network, device_map=None)
    quantizer.postprocess_model(network)
    if not _four_bit(network):
        raise ValueError(
            f"{type(network).__name__} has nothing to quantise: no linear layer but the skipped "
            f"{', '.join(quantizer.modules_to_not_convert) or 'ones'}. Leave quantization_config out."
        )


def _four_bit(network):
    return [module for module in network.modules() if type(module).__name__ == "Linear4bit"]


def _attach(network, config, **settings):
    """The model with its adapter, as peft makes it; an error names the layers that could be a target."""
    model_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    if config.is_prompt_learning and model_class is PeftModel:
        raise ValueError(f'{type(config).__name__} needs its task: pass task_type="CAUSAL_LM", "SEQ_CLS" ... to it.')
    if type(config).__name__ in UNPREDICTABLE:
        raise _unpredictable(config, UNPREDICTABLE[type(config).__name__])
    try:
        with _Answers():
            return model_class(network, config, **settings)
    except (NotImplementedError, RuntimeError) as error:
        raise _unpredictable(config, error) from error
    except (ValueError, TypeError) as error:
        modules = network.named_modules()
        layers = {n.rpartition(".")[2] for n, m in modules if hasattr(m, "in_features") or type(m).__name__ == "Conv1D"}
        raise ValueError(
            f"peft cannot add {type(config).__name__} to {type(network).__name__}: {error} "
            f'target_modules can be "all-linear" or a list of: {", ".join(sorted(layers))}.'
        ) from error


UNPREDICTABLE = {  # peft's methods that do without an error what a GPU does not, or end in an unclear one
    "ShiraConfig": "its mask has as many ones as the values say, and its weights are sparse",
    "BOFTConfig": "it permutes with them, and on a GPU it compiles a kernel of its own",
}


def _unpredictable(peft, error):
    return ValueError(
        f"{type(peft).__name__} cannot be predicted: a prediction has shapes and no values, and this method needs "
        f"values ({str(error).partition(chr(10))[0][:160] or repr(error)}). Measure a step with memory.measure instead."
    )


def _check_length(network, config, length, peft):
    """A row may not be longer than the model has positions; the first ones may be reserved, or taken by a prefix."""
    limit = getattr(config, "max_position_embeddings", None)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx:
            limit = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts on from the padding index
    virtual = getattr(peft, "num_virtual_tokens", None) or 0
    if limit and length + virtual > limit:
        prefix = f" with {virtual} virtual tokens before them" if virtual else ""
        raise ValueError(
            f"length {length}{prefix} is over the {limit} positions of {type(config).__name__}. Pass at most "
            f"length={limit - virtual}, or a configuration with larger max_position_embeddings."
        )


def _fill(network, dtype):
    """Tensors become those of the device that is set; tied ones stay tied, 4-bit ones get their constants."""
    filled, four_bit = {}, {id(module.weight): module for module in _four_bit(network)}
    meta = torch.get_default_device().type == "meta"

    def fake(old):
        if id(old) in four_bit:
            return _packed(four_bit[id(old)], dtype)
        if meta and old.is_meta:
            return old  # it may be a view of something larger
        new = torch.empty(old.shape, dtype=old.dtype)
        return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new

    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None:
                    if id(old) not in filled:
                        filled[id(old)] = (fake(old), old)  # with `old`, so that its id is not given to another
                    tensors[name] = filled[id(old)][0]


def _packed(module, dtype):
    """A 4-bit weight as bitsandbytes keeps it: two parameters a byte, and constants for each block of 64."""
    from bitsandbytes.functional import QuantState

    empty = partial(torch.empty, dtype=torch.float32)
    old, shape = module.weight, (module.out_features, module.in_features)
    blocks = -(-math.prod(shape) // old.blocksize)
    nested = {}
    if old.compress_statistics:  # the constants are themselves quantised: 8 bits, in blocks of 256
        outer = empty(-(-blocks // 256))
        outer = QuantState(absmax=outer, blocksize=256, code=empty(256), dtype=torch.float32)
        nested = {"offset": empty(()), "state2": outer}
    weight = empty((-(-math.prod(shape) // (2 * old.quant_storage.itemsize)), 1), dtype=old.quant_storage)
    weight = torch.nn.Parameter(weight, requires_grad=False)
    weight.quant_state = QuantState(
        absmax=empty(blocks, dtype=torch.uint8 if nested else torch.float32), shape=torch.Size(shape), dtype=dtype,
        blocksize=old.blocksize, code=empty(16), quant_type=old.quant_type, **nested,
    )  # fmt: skip
    module.quant_state = weight.quant_state
    return weight


def _constants(state):
    tensors = [state.absmax, state.code, state.offset, *(_constants(state.state2) if state.state2 is not None else ())]
    return [tensor for tensor in tensors if tensor is not None]


def _count(network):
    """Trainable and all parameters; a 4-bit weight counts as the parameters that it stands for."""
    sizes = Counter()
    for parameter in network.parameters():
        sizes[parameter.requires_grad] += math.prod(getattr(parameter, "quant_state", parameter).shape)
    return sizes[True], sizes.total()


# ---- Its optimizer: what the Trainer makes for a name (not paged ones: their state is no tensor of torch) -----


class _FusedAdamW(AdamW):
    """torch's fused AdamW, also for tensors without values, which torch refuses when it makes the state."""

    def _init_group(self, group, *lists):
        group |= {"fused": False, "capturable": True}  # as for a fused one, the step is counted on the device
        found = super()._init_group(group, *lists)
        group |= {"fused": True, "capturable": False}
        return found


def _bitsandbytes(kind, paged, parameters, network, cuda):
    """bitsandbytes' optimizer; a paged one's large states are outside torch's allocator, on the GPU if it has room."""
    import bitsandbytes

    optimizer = getattr(bitsandbytes.optim, kind)(parameters, lr=1e-4)
    # Else what earlier trainings of this process set for their embeddings would hold for this one's parameters.
    optimizer.mng = type("None", (), dict(index2config={}, pid2config={}, module_weight_config_triple=[]))
    small = optimizer.get_state_buffer
    if paged:
        optimizer.get_state_buffer = lambda p, dtype: small(p if p.numel() < 1e5 else p.new_empty(0), dtype)
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding)}
    usual = optimizer.get_config

    def get_config(group_index, index, group):  # the Trainer has the state of embeddings kept in 32 bits
        in_full = {"optim_bits": 32} if id(parameters[index]) in embeddings else {}
        return usual(group_index, index, group) | in_full

    optimizer.get_config = get_config
    return optimizer


BITSANDBYTES = {  # the Trainer's name: bitsandbytes'
    "adamw_8bit": "AdamW8bit", "adamw_bnb_8bit": "AdamW8bit", "paged_adamw_8bit": "AdamW8bit",
    "paged_adamw_32bit": "AdamW32bit", "lion_8bit": "Lion8bit", "lion_32bit": "Lion32bit",
    "paged_lion_8bit": "Lion8bit", "paged_lion_32bit": "Lion32bit", "rmsprop_bnb_8bit": "RMSprop8bit",
}  # fmt: skip
# A new one is a line here. `widgets`, `preflight` and `new` offer all of them.
OPTIMIZER_MAKERS = {  # name: function of the trained parameters, the model and whether a GPU is asked about
    "adamw_torch_fused": lambda parameters, network, cuda: _FusedAdamW(parameters, lr=1e-4, fused=True),
    "adamw_torch": lambda parameters, network, cuda: AdamW(parameters, lr=1e-4, foreach=cuda),  # torch's own choices
    "adafactor": lambda parameters, *_: Adafactor(parameters, 1e-4, scale_parameter=False, relative_step=False),
    "sgd": lambda parameters, network, cuda: SGD(parameters, lr=1e-4, foreach=cuda),
} | {name: partial(_bitsandbytes, kind, name.startswith("paged")) for name, kind in BITSANDBYTES.items()}
OPTIMIZERS = tuple(OPTIMIZER_MAKERS)


# ---- Its training, without values -----------------------------------------------------------------------------


def _inputs(config, task, batch, length, target_length, padding):
    ids = partial(torch.zeros, dtype=torch.long)
    inputs = {"input_ids": ids(batch, length)}
    if padding:
        inputs["attention_mask"] = ids(batch, length)
    if task == "QUESTION_ANS":
        return inputs | {"start_positions": ids(batch), "end_positions": ids(batch)}
    shape = {"SEQ_CLS": (batch,), "SEQ_2_SEQ_LM": (batch, target_length)}.get(task, (batch, length))
    labels = ids(shape)
    return inputs | {"labels": labels.float() if task == "SEQ_CLS" and config.num_labels == 1 else labels}


def _train(network, inputs, optimizer, gradient_accumulation_steps, operators, watch, outputs_kept):
    """Forward and backward passes for one step, two optimizer steps; the passes of the second are the first's again."""
    ledger, outputs = watch.ledger, None
    nobody, ledger.events = ledger.events, (passes := [])
    for _ in range(min(gradient_accumulation_steps, 2)):  # from the second pass on, all are alike
        with operators.mixed_precision():
            outputs = network(**inputs)
        loss = outputs.loss
        outputs = outputs if outputs_kept else None
        (loss / gradient_accumulation_steps).backward()
        del loss
    ledger.events = nobody
    for step in range(STEPS):
        watch.before_step(optimizer)
        optimizer.step()
        watch.after_step(optimizer)
        if step == 0:
            ledger.repeat(passes)
    optimizer.zero_grad()


def _evaluate(network, inputs, rows, operators):
    """The forward pass of an evaluation; for `rows` the logits are kept, and joined with a batch's as the Trainer does.

    Returns their size in words.
    """
    network.eval()
    with torch.no_grad(), operators.mixed_precision():
        outputs = network(**inputs)
        logits = outputs.logits.float() if operators.autocast else outputs.logits
        kept = logits.new_empty((max(rows - len(logits), 0), *logits.shape[1:]))
        torch.cat([kept, logits])
    shape = " x ".join(f"{size:,}" for size in (max(rows, len(logits)), *logits.shape[1:]))
    return f"logits {shape} in {str(logits.dtype)[6:]}" + ", twice while they are joined" * bool(rows)


def _without_values(tensor):
    return tensor.is_meta or isinstance(tensor, FakeTensor)


_turn = threading.Lock()


@contextlib.contextmanager
def _masks_without_values(encoder_decoder):
    """Lets transformers choose masks as for rows that are not packed and labels that are not padded.

    It looks at values for that, which fake tensors do not have, and here no mode can answer for them. So two of its
    functions are replaced, for all threads, by one prediction at a time; with real tensors they do what they always do.
    """

    def find_packed(position_ids):
        return None if _without_values(position_ids) else find_packed_sequence_indices(position_ids)

    def ignore_causal_mask(padding_mask=None, *args, **kwargs):
        no_values = encoder_decoder and padding_mask is not None and _without_values(padding_mask)
        return _ignore_causal_mask_sdpa(None if no_values else padding_mask, *args, **kwargs)

    with _turn:
        masking_utils.find_packed_sequence_indices = find_packed
        masking_utils._ignore_causal_mask_sdpa = ignore_causal_mask
        try:
            yield
        finally:
            masking_utils.find_packed_sequence_indices = find_packed_sequence_indices
            masking_utils._ignore_causal_mask_sdpa = _ignore_causal_mask_sdpa


class _Operators(TorchFunctionMode):
    """Stands in for operators of this thread: those that look at values, those of CUDA, and autocast's casts.

    Fake tensors have no values: a step counter is 1, and no label is left out. Fake CUDA tensors would bring CUDA's
    operators along, but in torch 2.13 without CUDA the first one that needs a gradient ends the process, from C++:
    "PyTorch is not linked with support for cuda devices" (AccumulateGrad asks for the device's guard). So the tensors
    are a CPU's, and here is what CUDA does otherwise: its dropout keeps a mask of one byte each, its attention never
    keeps the scores, its autocast computes some operators in fp32.
    """

    LOWER = (
        functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.addmm,
        torch.baddbmm, functional.conv1d, functional.conv2d,
    )  # fmt: skip
    FULL = (functional.layer_norm, functional.softmax, functional.log_softmax, functional.cross_entropy)

    def __init__(self, device, autocast):
        super().__init__()
        self.cuda, self.autocast, self.casts = device == "cuda", autocast, {}
        self.replaced = {torch.Tensor.__bool__: _truth}
        if self.cuda:
            self.replaced |= {functional.dropout: _dropout, functional.scaled_dot_product_attention: self._attention}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.replaced:
            return self.replaced[function](*args, **(kwargs or {}))
        if self.autocast and function in self.LOWER:
            args = [self._lower(value) for value in args]
            kwargs = {name: self._lower(value) for name, value in (kwargs or {}).items()}
        elif self.autocast and self.cuda and function in self.FULL:
            args = [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        return function(*args, **(kwargs or {}))

    def __exit__(self, *error):
        self.casts.clear()  # after a training, and after what checkpointing computes again
        super().__exit__(*error)

    @contextlib.contextmanager
    def mixed_precision(self):
        """Autocast for a forward pass. Its cache of cast weights is `casts`, as torch's own is one for all threads."""
        with torch.autocast("cpu", dtype=self.autocast, enabled=self.autocast is not None, cache_enabled=False):
            yield
        self.casts.clear()

    def checkpointing(self):
        """Arguments of gradient checkpointing: what it computes again, in the backward pass, has these operators too.

        Without the state of the random numbers, which belongs to all threads.
        """
        contexts = contextlib.nullcontext(), self  # of the forward pass, which has them already, and of the second one
        return {"use_reentrant": False, "preserve_rng_state": False, "context_fn": lambda: contexts}

    def _lower(self, weight):
        """A trained fp32 weight in autocast's dtype, made once in a forward pass; anything else as it is."""
        trained = isinstance(weight, torch.nn.Parameter) and weight.requires_grad and weight.dtype == torch.float32
        if not torch.is_autocast_enabled("cpu"):
            return weight
        if not trained:
            full = self.cuda and isinstance(weight, torch.Tensor) and weight.dtype == torch.float32
            return weight.to(self.autocast) if full else weight
        if id(weight) not in self.casts:
            self.casts[id(weight)] = weight.to(self.autocast)
        return self.casts[id(weight)]

    def _attention(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if self.autocast:
            q, k, v = (tensor.to(self.autocast) for tensor in (q, k, v))
        if attn_mask is None and q.dtype != torch.float32 and q.shape[-1] <= 256:
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(q, k, v, dropout_p, is_causal, scale=scale)[0]
        if enable_gqa and q.shape[1] != k.shape[1]:  # only flash attention knows shared heads
            math_only = torch.ops.aten._scaled_dot_product_attention_math
            return math_only(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True)[0]
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -math.inf)
        if attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def _truth(tensor):
    """Of a tensor without values: no mask is all ones, and a draw such as `torch.rand(1) > p` comes out true."""
    return tensor.dim() > 0 if _without_values(tensor) else tensor.item() != 0


def _dropout(x, p=0.5, training=True, inplace=False):
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


# ---- Measure ----------------------------------------------------------------------------------------------------


class measure(transformers.TrainerCallback):
    """Measures a training: a context manager, and a callback for the `Trainer`; one meaning on every device.

    As a context manager it needs the model, made and on its device before. After the block, or during it, it has
    `peak`, `split`, `phase`, `phases`, `timeline`, `trainable` and `total`, as a `Prediction` has, and `source`: on a
    CPU the live tensors are added up; on CUDA the allocator is read, and the split is that of the live tensors in the
    first two steps (what the allocator has beyond them counts as temporaries). It resets the allocator's peak.
    Evaluation is a phase of its own. `ValueError` without a model.

    >>> import torch
    >>> model = torch.nn.Linear(1000, 1000, bias=False)
    >>> with measure(model) as measured:
    ...     model(torch.ones(1, 1000)).sum().backward()
    >>> measured.split["weights"], measured.split["gradients"], measured.phase
    (4000000, 4000000, 'backward')

    Taught in notebooks/03_full_fine_tuning.ipynb, "Round 2: predicted against measured".
    """

    def __init__(self, model=None):
        self.model, self.ledger, self.open = model, None, contextlib.ExitStack()

    def __enter__(self):
        if self.model is None:
            raise ValueError(
                "measure() needs the model here: `with memory.measure(model) as measured:`. Without one it is a "
                "callback: Trainer(..., callbacks=[memory.measure()])."
            )
        last = getattr(_here, "measurement", lambda: None)()
        if last is not None:  # a callback whose training was broken off by an error would go on counting
            last.stop()
        _here.measurement = weakref.ref(self)
        self.trainable, self.total = _count(self.model)
        device = next(self.model.parameters()).device
        self.ledger = _Ledger(device)
        self.open.callback(self.ledger.close)
        watch = self.open.enter_context(_Watch(self.model, self.ledger))
        self.open.callback(register_optimizer_step_pre_hook(watch.before_step).remove)
        self.open.callback(register_optimizer_step_post_hook(watch.after_step).remove)
        return self

    def stop(self, *error):
        """Ends the measurement; only needed after a training with the callback was broken off by an error."""
        self.open.close()

    __exit__ = stop

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.model = model
        self.__enter__()

    def on_train_end(self, args, state, control, **kwargs):
        self.stop()

    def __getattr__(self, name):
        ledger = self.__dict__.get("ledger")
        if name not in ("peak", "split", "phase", "phases", "timeline") or ledger is None:
            raise AttributeError(f"a measurement has no {name}" + ("" if ledger else " yet"))
        return getattr(ledger, name)

    peak_gib = Prediction.peak_gib

    @property
    def source(self):
        return f"measured on {self.ledger.device.type}: {'the allocator' if self.ledger.on_cuda else 'live tensors'}"

    def __repr__(self):
        return _table(self.source, self) if self.ledger else "nothing measured yet"


_here = threading.local()  # the measurement that runs in this thread


# ---- Fits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Whether a training fits, by how much, and what would change that. Shows as a sentence or two.

    `margin_gib` is what is left (negative: what is missing), `change` the smallest change that makes it fit, as
    arguments of `predict`, `changed` its prediction, `tried` all changes that were predicted.

    >>> Fit("yes", 3.2, "20.0 of 24.0 GiB.")
    yes: 20.0 of 24.0 GiB.
    """

    answer: str
    margin_gib: float
    why: str
    change: dict | None = None
    changed: Prediction | None = None
    tried: tuple = ()

    def __repr__(self):
        if self.answer == "yes":
            return f"yes: {self.why}"
        if self.change is None:
            return f"{self.answer}: {self.why}" + " No change that was tried makes it fit." * bool(self.tried)
        change = ", ".join(f"{name}={_short(value)}" for name, value in self.change.items())
        return f"{self.answer}: {self.why} With {change} it fits: peak {self.changed.peak_gib:.1f} GiB."


def fits(prediction, device, suggest=True):
    """Whether a predicted training fits a device ("cuda"), a card of `CARDS` ("T4") or so many GiB: yes, no or tight.

    "yes": there is room for what the allocator will reserve, `SLACK` more, and CUDA itself (`OUTSIDE_GIB`). "tight":
    only for the tensors and CUDA itself, so the allocator has to give back and ask again. If not yes, and with
    `suggest`, `smallest_change` looks for the smallest change that makes it fit: smaller batches with more
    accumulation, then gradient checkpointing, then LoRA, then QLoRA, then shorter rows. That takes as long as
    predictions take; `ladder` shows all steps. `ValueError` when there is no such device, or no size above 0.

    >>> from transformers import BertConfig
    >>> small = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    >>> fits(predict(small, batch=8, length=128), 8).answer
    'yes'

    Taught in notebooks/03_full_fine_tuning.ipynb, "What would fit where".
    """
    capacity = _capacity_gib(device)
    answer, margin = _verdict(prediction, capacity)
    parts = sorted(prediction.split.items(), key=lambda part: -part[1])[:2]
    largest = " and ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
    outside = f", {prediction.reserved_gib:.1f} reserved, and about {OUTSIDE_GIB} for CUDA itself"
    outside *= prediction.device == "cuda"
    why = f"peak {prediction.peak_gib:.1f} GiB ({largest}){outside}, of {capacity:.1f} GiB."
    if prediction.phase == "evaluation" and prediction.logits:
        why += f" The peak is the evaluation: {prediction.logits}."
    settings = prediction.settings
    if answer == "yes" or not suggest or not settings:
        return Fit(answer, margin, why)
    change, changed, tried = smallest_change(
        lambda change: predict(**settings | change), capacity, batch=settings["batch"], length=settings["length"],
        accumulation=settings["gradient_accumulation_steps"], methods=_lighter_methods(settings),
        checkpointing=None if settings["activation_checkpointing"] else {"activation_checkpointing": True},
    )  # fmt: skip
    return Fit(answer, margin, why, change, changed, tuple(tried))


def ladder(prediction, device):
    """The steps against "out of memory", from the one that costs least on, each on top of those before, as rows.

    Batch 1 with more accumulation; gradient checkpointing (about a third more time); an 8-bit paged optimizer; LoRA; a
    4-bit base without the upcast to fp32; half the tokens. A row has `step`, `peak_gib`, `saved_gib`, `answer` and
    `change`; a step that is there already or not possible is left out. `ValueError` as `fits` has it.

    >>> from transformers import BertConfig
    >>> small = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    >>> [row["step"] for row in ladder(predict(small, batch=8, length=128), "T4")][:3]
    ['as it is', 'batch 1, accumulation 8', 'gradient checkpointing']
    """
    capacity, settings, rows = _capacity_gib(device), dict(prediction.settings), []
    rows_a_step = settings["batch"] * settings["gradient_accumulation_steps"]
    steps = {
        "as it is": {},
        f"batch 1, accumulation {rows_a_step}": {"batch": 1, "gradient_accumulation_steps": rows_a_step},
        "gradient checkpointing": {"activation_checkpointing": True},
        "8-bit paged AdamW": {"optim": "paged_adamw_8bit"},
    }
    for method in _lighter_methods(settings):
        steps["4-bit base" if "quantization_config" in method else "LoRA"] = method | {"prepare_kbit": False}
    steps[f"{settings['length'] // 2} tokens"] = {"length": settings["length"] // 2}
    for step, change in steps.items():
        if rows and all(settings.get(name) == value for name, value in change.items()):
            continue
        try:
            found = predict(**settings | change)
        except ValueError:
            continue
        settings |= change
        saved = rows[-1]["peak_gib"] - found.peak_gib if rows else 0.0
        answer, _ = _verdict(found, capacity)
        rows.append(dict(step=step, peak_gib=found.peak_gib, saved_gib=saved, answer=answer, change=change))
    return rows


def smallest_change(predict, capacity_gib, *, batch, length, accumulation=1, checkpointing=None, methods=()):
    """The smallest change of the settings with which a training fits, its prediction, and everything that was tried.

    `predict` is a function of a change (a dict) that returns the `Prediction` of the settings with this change; a
    `ValueError` from it means that this change is not possible (such as QLoRA on a model without linear layers), any
    other exception ends the search and reaches the caller. The changes are tried in this order: the same rows per step
    in smaller batches with more accumulation, `{"batch": n, "gradient_accumulation_steps": m}`; the same with
    `checkpointing` (the change that turns gradient checkpointing on, such as `{"activation_checkpointing": True}`; None
    where it is on already); each of `methods` alone, then with checkpointing; shorter rows `{"length": n}`, down to 64
    tokens, with each method. Smaller batches are tried with every one of these, and the largest that fits is taken.

    Returns `(change, prediction, tried)`; `change` and `prediction` are None when nothing that was tried fits.
    `tried` is a list of {"change", "peak_gib", "answer"}.

    >>> sizes = lambda change: Prediction(2**30 * change.get("batch", 8), {}, "step", device="cpu")
    >>> change, prediction, tried = smallest_change(sizes, 5, batch=8, length=64)
    >>> change, prediction.peak_gib
    ({'batch': 4, 'gradient_accumulation_steps': 2}, 4.0)
    """
    tried = []

    def attempt(change):
        """The prediction with this change if it fits, or None."""
        try:
            prediction = predict(change)
        except ValueError as error:
            tried.append({"change": change, "peak_gib": None, "answer": str(error)})
            return None
        answer, _ = _verdict(prediction, capacity_gib)
        tried.append({"change": change, "peak_gib": prediction.peak_gib, "answer": answer})
        return prediction if answer == "yes" else None

    for level in _levels(length, checkpointing or {}, methods):
        changes = [level | size for size in ({}, *_smaller_batches(batch, accumulation)) if level | size]
        smallest = attempt(changes[-1]) if changes else None
        if smallest is None:
            continue  # what does not fit with the smallest batch does not fit with a larger one
        for change in changes[:-1]:
            if prediction := attempt(change):
                return change, prediction, tried
        return changes[-1], smallest, tried
    return None, None, tried


def _levels(length, checkpointing, methods):
    """Changes from the one that alters least of the result to the one that alters most."""
    for method in ({}, *methods):
        yield method
        if checkpointing:
            yield method | checkpointing
    while (length := length // 2) >= SHORTEST:
        for method in methods or ({},):
            yield method | checkpointing | {"length": length}


def _smaller_batches(batch, accumulation):
    """Half the batch and twice the accumulation, and so on down to one row: as many rows in a step."""
    sizes = [batch // 2**k for k in range(1, batch.bit_length()) if batch % 2**k == 0]
    sizes += [1] * (batch > 1 and 1 not in sizes)
    return [{"batch": size, "gradient_accumulation_steps": accumulation * batch // size} for size in sizes]


def _lighter_methods(settings):
    """LoRA and QLoRA as arguments of `predict`, as far as the settings are not there already."""
    methods, lora = [], {}
    task = _task(configuration(settings["model"]), settings["task"], settings["peft"])
    heads = ["classifier", "score"] if task in ("SEQ_CLS", "TOKEN_CLS") else None  # trained, so not 4-bit
    if settings["peft"] is None:
        task = task if task in MODEL_TYPE_TO_PEFT_MODEL_MAPPING else None
        lora = {"peft": LoraConfig(task_type=task, target_modules="all-linear")}
        methods.append(lora)
    if settings["quantization_config"] is None and not getattr(settings["peft"], "is_prompt_learning", False):
        four_bit = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_dtype(settings["autocast"] or settings["dtype"] or "bfloat16"),
            llm_int8_skip_modules=heads,
        )  # fmt: skip
        methods.append(lora | {"quantization_config": four_bit})
    return methods


def _capacity_gib(device):
    name = str(device)
    for card, size in CARDS.items():
        if name in (card, card.partition(" (")[0]):
            return size
    if isinstance(device, (int, float)) and device > 0:
        return float(device)
    if name.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory / GIB
    if name == "cpu":
        import psutil

        return psutil.virtual_memory().total / GIB
    raise ValueError(
        f"{device!r} is no size above 0 and no device of this machine that has one; pass GiB, such as 24, "
        f"or one of {', '.join(CARDS)}."
    )


def _verdict(prediction, capacity):
    outside = OUTSIDE_GIB if prediction.device == "cuda" else 0
    margin = capacity - prediction.peak_gib - outside
    if margin < 0:
        return "no", margin
    return ("yes" if prediction.reserved_gib * (1 + SLACK) + outside <= capacity else "tight"), margin


# ---- What predictions and measurements share: a ledger of live storages, and what fills it -------------------------


@dataclass(eq=False)
class _Storage:
    size: int
    part: str
    number: int  # storages are numbered as they come
    block: object = None  # where the allocator put it


class _Highest(NamedTuple):
    """The most bytes that were alive at once, their parts, and how many storages had come by then."""

    bytes: int
    parts: Counter
    count: int


@dataclass(eq=False)
class _Block:
    size: int
    place: int
    small: bool
    free: bool = False
    before: "_Block | None" = None  # its neighbours in the segment
    after: "_Block | None" = None


class _Allocator:
    """torch's caching allocator of CUDA, without memory: what it reserves for what is asked of it, and in which order.

    It takes segments of 2 MiB for what is at most 1 MiB, of 20 MiB for less than 10 MiB, else as large as needed; gives
    the smallest free piece that is large enough, splits off what is left, joins free neighbours, and returns nothing
    (torch's c10/cuda/CUDACachingAllocator.cpp, with its usual settings).
    """

    MIB = 2**20

    def __init__(self):
        self.reserved, self.pieces = 0, {True: [], False: []}  # the free pieces, small and large, by size and place

    def allocate(self, size):
        size = -(-size // BLOCK) * BLOCK
        small = size <= self.MIB
        pieces = self.pieces[small]
        found = bisect.bisect_left(pieces, (size, -1))
        if found < len(pieces):
            block = pieces.pop(found)[2]
            block.free = False
        else:
            large = 20 * self.MIB if size < 10 * self.MIB else -(-size // (2 * self.MIB)) * 2 * self.MIB
            block = _Block(2 * self.MIB if small else large, self.reserved, small)
            self.reserved += block.size
        if block.size - size > (0 if small else self.MIB):
            rest = _Block(block.size - size, block.place + size, small, before=block, after=block.after)
            if rest.after:
                rest.after.before = rest
            block.size, block.after = size, rest
            self._keep(rest)
        return block

    def release(self, block):
        for first, second in ((block, block.after), (block.before, block)):
            if first and second and (first.free or second.free):
                joined = second if second is not block else first
                self.pieces[block.small].remove((joined.size, joined.place, joined))
                first.size, first.after = first.size + second.size, second.after
                if second.after:
                    second.after.before = first
                block = first
        self._keep(block)

    def _keep(self, block):
        block.free = True
        bisect.insort(self.pieces[block.small], (block.size, block.place, block))


class _Ledger:
    """Bytes of the storages that are alive, by part; the highest of each pass in turn; the split at the highest of all.

    On CUDA the highest of a pass is the allocator's, and what it has beyond the live storages counts as temporaries.
    """

    def __init__(self, device, allocator=None):
        self.device, self.allocator = torch.device(device), allocator
        self.live = {}  # a _Storage for each storage's address
        self.bytes, self.parts, self.count = 0, Counter(), 0  # alive now; their parts; storages that have come
        self.events = deque(maxlen=0)  # or a list: storages that come, tuples of one that goes, phases that begin
        self.highest = _Highest(0, Counter(), 0)
        self.timeline, self.step = [], 1
        self.lock = threading.RLock()  # other threads may free what this one made
        self.on_cuda = self.device.type == "cuda"
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self.enter("forward")

    def enter(self, phase):
        """A new point of the timeline; but between two steps the next forward pass has begun already."""
        self._read_allocator()
        self.events.append(phase)
        last = self.timeline[-1] if self.timeline else {}
        if phase != "forward" or (last.get("phase"), last.get("step")) != ("forward", self.step):
            self.timeline.append({"step": self.step, "phase": phase, "bytes": 0})
        self._note(0 if self.on_cuda else self.bytes)

    def add(self, tensor, part, rename=False):
        """Counts the tensor's storage, if it is new; with `rename` a known one gets this part from its beginning on."""
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        address = storage._cdata
        with self.lock:
            known = self.live.get(address)
            if known is None and storage.nbytes():
                self._take(address, storage.nbytes(), part)
                weakref.finalize(storage, self._drop, address).atexit = False
            elif known and rename and known.part != part:
                self._rename(known, part)

    def _take(self, address, size, part):
        block = self.allocator.allocate(size) if self.allocator else None
        size = block.size if block else size
        self.count += 1
        self.live[address] = storage = _Storage(size, part, self.count, block)
        self.events.append(storage)
        self.parts[part] += size
        self.bytes += size
        if not self.on_cuda:
            self._note(self.bytes)
        if self.bytes > self.highest.bytes:
            self.highest = _Highest(self.bytes, Counter(self.parts), self.count)

    def _rename(self, known, part):
        then = known.number <= self.highest.count  # alive at the highest, and was already what it turns out to be
        for count in [self.parts] + [self.highest.parts] * then:
            count[known.part] -= known.size
            count[part] += known.size
        known.part = part

    def _drop(self, address):
        with self.lock:
            storage = self.live.pop(address)
            self.parts[storage.part] -= storage.size
            self.bytes -= storage.size
            self.events.append((storage,))
            if self.allocator:
                self.allocator.release(storage.block)

    def repeat(self, passes):
        """The passes of an earlier step once more in this one, beside what the optimizer keeps by now.

        Its gradients are gone by then. What else is left of it, such as kept outputs, goes when a forward pass ends.
        """
        came = {event for event in passes if isinstance(event, _Storage)}
        left = {storage: address for address, storage in self.live.items() if storage in came}
        for storage in [storage for storage in left if storage.part == "gradients"]:
            self._drop(left[storage])
        for event in passes:
            if isinstance(event, str):
                self.enter(event)
                for address in [a for s, a in left.items() if event == "backward" and self.live.get(a) is s]:
                    self._drop(address)
            elif isinstance(event, _Storage):
                self._take(event, event.size, event.part)
            elif event[0] in came:
                self._drop(event[0])
        for storage, address in left.items():
            self.live[address] = self.live.pop(storage)

    def _note(self, size):
        self.timeline[-1]["bytes"] = max(self.timeline[-1]["bytes"], size)

    def _read_allocator(self):
        """The highest since it was last read; the host keeps these counts, so nothing has to wait for the device."""
        if self.on_cuda and self.timeline:
            self._note(torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)

    def close(self):
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        self._read_allocator()
        last = self.timeline[-1]
        if self.step > 1 and last["phase"] == "forward" and last["bytes"] < self.peak:
            self.timeline.pop()  # the forward pass that never came

    @property
    def peak(self):
        return max(point["bytes"] for point in self.timeline)

    @property
    def phase(self):
        return max(self.timeline, key=lambda point: point["bytes"])["phase"]

    @property
    def phases(self):
        names = dict.fromkeys(point["phase"] for point in self.timeline)
        return {name: max(p["bytes"] for p in self.timeline if p["phase"] == name) for name in names}

    @property
    def split(self):
        parts = {part: self.highest.parts.get(part, 0) for part in PARTS}
        return parts | {"temporaries": parts["temporaries"] + max(0, self.peak - self.highest.bytes)}


class _Watch:
    """While it is open, every storage that an operator of this thread makes goes into the ledger, pass by pass.

    Whoever trains calls `before_step` and `after_step` with the optimizer.
    """

    def __init__(self, model, ledger):
        self.model, self.ledger, self.thread = model, ledger, threading.current_thread()
        self.hooks, self.recorder = contextlib.ExitStack(), contextlib.ExitStack()

    def __enter__(self):
        for parameter in self.model.parameters():
            self.ledger.add(parameter, "weights", rename=True)
            self._keep_gradient(parameter)
            if parameter.requires_grad:
                self.hooks.callback(parameter.register_post_accumulate_grad_hook(self._keep_gradient).remove)
        kept = (v for m in self.model.modules() for k, v in vars(m).items() if k not in ("_parameters", "_modules"))
        for tensor in tree_iter(list(kept)):  # buffers, and what is in a list or a dictionary
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is None:
                self.ledger.add(tensor, "weights", rename=True)
        four_bit = _four_bit(self.model)
        for module in four_bit:
            for constant in _constants(module.weight.quant_state):
                self.ledger.add(constant, "quantisation constants", rename=True)
        self.hooks.callback(self.model.register_forward_pre_hook(self._before_forward).remove)
        self.hooks.callback(self.model.register_forward_hook(self._after_forward).remove)
        self.recorder.enter_context(_Recorder(self.ledger, bool(four_bit)))
        return self

    def __exit__(self, *error):
        self.recorder.close()
        self.hooks.close()

    def _before_forward(self, *_):
        self.ledger.enter("forward" if torch.is_grad_enabled() else "evaluation")

    def _after_forward(self, *_):
        if torch.is_grad_enabled():
            self.ledger.enter("backward")

    def before_step(self, optimizer, *_):
        if threading.current_thread() is self.thread:  # as a hook it is called for every optimizer of the process
            self._keep_state(optimizer)
            self.ledger.enter("step")

    def after_step(self, optimizer, *_):
        if threading.current_thread() is self.thread:
            self._keep_state(optimizer)
            self.ledger.step += 1
            self.ledger.enter("forward")
            if self.ledger.on_cuda and self.ledger.step > STEPS:  # the split is known: only the allocator is read now
                self.recorder.close()

    def _keep_gradient(self, parameter):
        if parameter.grad is not None:
            self.ledger.add(parameter.grad, "gradients", rename=True)

    def _keep_state(self, optimizer):
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    self.ledger.add(value, "optimizer", rename=True)


def _like_the_first(function, x, y, **more):
    """A sum or product; if it is like x, without torch's own way to its shape, which is in slow Python."""
    alike = torch.broadcast_shapes(x.shape, getattr(y, "shape", ())) == x.shape
    alike = alike and x.is_floating_point() and getattr(y, "dtype", x.dtype) == x.dtype
    return torch.empty_like(x) if alike and x.is_meta else function(x, y, **more)


def _grouped_mm(a, b, offs=None, bias=None, out_dtype=None):
    """A product for each expert; torch's own answer for tensors without values is for bf16 alone."""
    experts = () if 3 in (a.dim(), b.dim()) else (len(offs),)
    return a.new_empty((*experts, a.shape[-2], b.shape[-1]), dtype=out_dtype)


class _Answers(TorchDispatchMode):
    """Answers for what tensors without values cannot say: a number is 1, and of a mask all is chosen."""

    ANSWERS: ClassVar = {
        torch.ops.aten._local_scalar_dense.default: lambda x: 1,
        torch.ops.aten.nonzero.default: lambda x: x.new_empty((x.numel(), x.dim()), dtype=torch.long),
        torch.ops.aten.bincount.default: lambda x, weights=None, minlength=0: x.new_empty(minlength),
        torch.ops.aten.index.Tensor: lambda x, indices: torch.ops.aten.index.Tensor(x, [*_all_of(indices)]),
        torch.ops.aten.add.Tensor: partial(_like_the_first, torch.ops.aten.add.Tensor),
        torch.ops.aten.mul.Tensor: partial(_like_the_first, torch.ops.aten.mul.Tensor),
        torch.ops.aten._grouped_mm.default: _grouped_mm,
    }

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.ANSWERS and _without_values(args[0]):
            return self.ANSWERS[function](*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _all_of(indices):
    """Indices with numbers in the place of masks."""
    for index in indices:
        if index is not None and index.dtype is torch.bool:
            yield from [index.new_empty(index.numel(), dtype=torch.long)] * index.dim()
        else:
            yield index


class _Recorder(_Answers):
    """torch calls it for each operator of this thread, forward and backward: what that returns goes into the ledger."""

    SOFTMAX_BACKWARD = torch.ops.aten._softmax_backward_data.default

    def __init__(self, ledger, four_bit):
        super().__init__()
        self.ledger, self.gemm_4bit = ledger, torch.ops.bitsandbytes.gemm_4bit.default if four_bit else None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is self.gemm_4bit:
            with self:  # this operator hides a temporary as large as the weight
                return _gemm_4bit(*args, **(kwargs or {}))
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if self.ledger.timeline[-1]["phase"] == "step":
            part = "temporaries"
        elif _current_graph_task_id() == -1:  # not in a backward pass
            part = "activations"
        else:
            part = "recomputed activations" if torch.is_grad_enabled() else "temporaries"
        made = (out,) if isinstance(out, torch.Tensor) else tree_iter(out)
        if function is self.SOFTMAX_BACKWARD and self.ledger.allocator:  # CUDA's (SoftMax.cu) makes a product beside it
            made = (out, torch.empty_like(args[0]))
        for value in made:
            if isinstance(value, torch.Tensor):
                self.ledger.add(value, part)
        return out


def _gemm_4bit(x, weight, shape, absmax, blocksize, quant_type, bias=None, absmax_8bit=None, code=None, offset=None):
    """bitsandbytes' product with a 4-bit weight, in the steps of its CPU kernel (and of CUDA's, for many rows)."""
    ops = torch.ops.bitsandbytes
    if absmax_8bit is not None:
        absmax = ops.dequantize_blockwise.default(absmax_8bit, absmax, code, 256, torch.float32) + offset
    weight = ops.dequantize_4bit.default(weight, absmax, blocksize, quant_type, shape, x.dtype)
    return functional.linear(x, weight, bias)


# ---- Texts ----------------------------------------------------------------------------------------------------------


def _short(value):
    return f"{type(value).__name__}(...)" if hasattr(value, "to_dict") else repr(value)


def _table(title, memory):
    lines = [f"{title}: peak {_size(memory.peak)}, in the {memory.phase} phase"]
    lines += [
        f"  {part:22} {_size(size):>10}  {size / memory.peak:4.0%}" for part, size in memory.split.items() if size
    ]
    if memory.total:
        share = memory.trainable / memory.total
        lines.append(f"  trainable: {memory.trainable:,} of {memory.total:,} parameters ({share:.2%})")
    if getattr(memory, "reserved", 0) > memory.peak:
        lines.append(f"  reserved by the allocator: {_size(memory.reserved)}")
    lines += [f"  - {sentence}" for sentence in getattr(memory, "assumes", ())]
    return "\n".join(lines)


def _size(size):
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.2f} MiB"
