"""Where the memory of a training goes: predicted from a configuration, measured in a run, compared with a device.

    predicted = memory.predict(LlamaConfig(), batch=1, length=512, peft=LoraConfig(target_modules="all-linear"))
    memory.fits(predicted, 24)                       # GiB, or "cuda" for the device of this machine
    with memory.measure(model) as measured: ...      # or Trainer(..., callbacks=[memory.measure()])

A prediction needs no weights and no GPU. It builds the model with shapes only (torch's fake tensors), trains it for two
real steps and adds up the storages that are alive. Nothing is estimated by a formula, so whatever the libraries do is
in the sum. A measurement on a CPU is the same sum over real tensors; on CUDA the peak is the allocator's.
"""

import bisect
import contextlib
import copy
import functools
import importlib
import logging
import math
import pkgutil
import re
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

# TrainerCallback brings peft and bitsandbytes in, which on some processors asks for a kernel from the Hub, on stderr.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

PARTS = (
    "weights",  # parameters and buffers
    "quantisation constants",
    "gradients",
    "optimizer",
    "activations",  # what the forward pass made, inputs included
    "recomputed activations",  # made again in the backward pass, by checkpointing
    "temporaries",  # whatever else the backward pass and the step hold
)
GIB = 2**30
BLOCK = 512  # CUDA's allocator gives memory in blocks of this many bytes
STEPS = 2  # the first step makes the optimizer's state, the second one trains beside it
OUTSIDE_GIB = 0.75  # what CUDA takes beside the allocator: its context, cuBLAS workspaces. Not calibrated yet
SLACK = 0.08  # of the peak: memory that the allocator holds in pieces too small to use. Not calibrated yet
TASKS = {  # peft's names of the tasks (it has none for masked language models), the models that do them, their class
    "SEQ_CLS": ("ForSequenceClassification", "SEQUENCE_CLASSIFICATION", "SequenceClassification"),
    "TOKEN_CLS": ("ForTokenClassification", "TOKEN_CLASSIFICATION", "TokenClassification"),
    "QUESTION_ANS": ("ForQuestionAnswering", "QUESTION_ANSWERING", "QuestionAnswering"),
    "MASKED_LM": ("ForMaskedLM", "MASKED_LM", "MaskedLM"),
    "CAUSAL_LM": (("ForCausalLM", "LMHeadModel"), "CAUSAL_LM", "CausalLM"),
    "SEQ_2_SEQ_LM": ("ForConditionalGeneration", "SEQ_TO_SEQ_CAUSAL_LM", "Seq2SeqLM"),
}
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "adafactor", "sgd")


# ---- Predict --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What a training step will hold at its peak; all sizes in bytes. Shows as a short table.

    `split` has the parts at the peak, `phases` the highest point of the forward pass, the backward pass and the
    optimizer's step, `timeline` the same for each pass in turn, `assumes` what a real run may do differently.

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

    @property
    def peak_gib(self):
        return self.peak / GIB

    def __repr__(self):
        return _shown(f"predicted for {self.device}", self)


def predict(
    model, *, batch, length, peft=None, quantization_config=None, task=None, dtype=None, optim="adamw_torch_fused",
    activation_checkpointing=False, gradient_accumulation_steps=1, autocast=None, padding=True, target_length=None,
    attn_implementation=None, device="cuda",
):  # fmt: skip
    """The peak memory of training a model, and where it goes, from its configuration alone: no weights, no GPU.

    `model` is a transformers configuration, a folder or a Hub id; `peft` a peft configuration, `quantization_config` a
    `BitsAndBytesConfig` (the model is then prepared by peft's `prepare_model_for_kbit_training`). `batch` and `length`
    are rows and tokens of one forward pass, `target_length` the tokens of the labels of an encoder-decoder. `dtype` is
    that of the weights (the configuration's, or fp32), `autocast` that of mixed precision: two different things.
    `padding=False`: no row is padded, so no attention mask is needed. `optim`, `activation_checkpointing`
    and `gradient_accumulation_steps` are as in `TrainingArguments`. `device` says whose operators to take: "cuda" or
    "cpu". `ValueError` for what cannot be built or trained.

    Other threads may train meanwhile: of the libraries nothing is changed but for this thread, and predictions take
    turns. (torch has one autocast cache for all threads: to leave autocast may wait for a prediction that uses it.)

    >>> from transformers import BertConfig
    >>> small = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    >>> predicted = predict(small, batch=8, length=128)
    >>> predicted.phase, predicted.split["optimizer"] > 1.9 * predicted.split["weights"]
    ('backward', True)

    Taught in notebooks/03_full_fine_tuning.ipynb, "Round 1: the memory sum".
    """
    settings = dict(locals())
    _check_choices(settings)
    config = _configuration(model)
    task = _task(config, task, peft)
    dtype, autocast = _dtype(dtype or config.dtype or "float32"), _dtype(autocast)
    with _instead(BUILDING):
        network = _build(config, task, dtype, attn_implementation, peft, quantization_config)
        _check_length(network, config, length, peft)
        if activation_checkpointing:  # without the state of the random numbers, which is that of all threads
            network.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        ledger = _Ledger("cpu", BLOCK if device == "cuda" else 1)
        operators = _operators(device, optim, autocast, config.is_encoder_decoder)
        with _inside("FakeTensorMode")(allow_non_fake_inputs=True), _instead(operators):
            _fill(network, dtype)
            inputs = _inputs(config, task, batch, length, target_length or length, padding)
            with _watching(network, ledger) as around_step:
                for tensor in inputs.values():
                    ledger.add(tensor, "activations")
                _train(network, inputs, optim, gradient_accumulation_steps, autocast, ledger, device, *around_step)
    trainable, total = _count(network)
    ledger.close()
    return Prediction(
        ledger.peak, ledger.split, ledger.phase, ledger.phases, ledger.timeline, trainable, total, device,
        _assumptions(task, dtype, autocast, padding, quantization_config, device), settings,
    )  # fmt: skip


def _assumptions(task, dtype, autocast, padding, quantization_config, device):
    name = str(dtype).removeprefix("torch.")
    return (
        f"task {task}, weights in {name}, {'autocast ' + str(autocast)[6:] if autocast else 'no autocast'}",
        "rows are padded: an attention mask is built" if padding else "no row is padded: no attention mask is built",
        "use_cache=False, as the Trainer sets it; gradients set to None after each step; checkpointing not reentrant",
        *(["prepare_model_for_kbit_training was called: fp32 but for 4 bit"] * (quantization_config is not None)),
        *(["CUDA's choice of operators is imitated and not yet checked on a GPU"] * (device == "cuda")),
        *(["no gradient scaler"] * (str(autocast) == "torch.float16")),
    )  # fmt: skip


def _configuration(model):
    """A configuration of our own to change; from an object, a folder or a Hub id."""
    if isinstance(model, transformers.PreTrainedConfig):
        config = copy.deepcopy(model)
    elif isinstance(model, str) or hasattr(model, "__fspath__"):
        try:
            read, _ = transformers.PreTrainedConfig.get_config_dict(str(model))
        except OSError as error:
            raise ValueError(
                f'no configuration for "{model}": no such folder with a config.json, and no such model in the cache or '
                "on the Hub. Pass a transformers configuration, a folder or a Hub id."
            ) from error
        kind = read.get("model_type")
        if kind not in transformers.CONFIG_MAPPING:
            raise ValueError(f'the config.json of "{model}" has model_type {kind!r}, which this transformers lacks.')
        config = transformers.CONFIG_MAPPING[kind].from_dict(read)
    else:
        raise ValueError(
            f"model is {type(model).__name__}; pass a transformers configuration such as BertConfig(), a folder or a "
            "Hub id. The configuration of a model that you have is model.config."
        )
    config.use_cache = False
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # classifiers on decoders look for it; memory does not depend on which one it is
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id
    return config


def _task(config, task, peft):
    """The task as peft names it: as asked, as the peft config says, as the architecture says, or the family's usual."""
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
        raise ValueError(
            f'task "{named}": transformers has {type(config).__name__} models for {", ".join(known)} only.'
        )
    usual = ["SEQ_2_SEQ_LM"] if config.is_encoder_decoder else []
    usual += ["SEQ_CLS"] if "MASKED_LM" in known else ["CAUSAL_LM"]
    return next((name for name in usual if name in known), known[0])


def _dtype(value):
    """A torch dtype, from one or from its name."""
    found = getattr(torch, value, value) if isinstance(value, str) else value
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f'dtype "{value}" is none of torch\'s for weights: pass torch.float32, torch.bfloat16 ...')
    return found


def _build(config, task, dtype, attn_implementation, peft, quantization_config):
    """The model as `from_pretrained` and peft would give it, with shapes instead of numbers."""
    from peft import prepare_model_for_kbit_training

    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with torch.device("meta"):
        models = getattr(transformers, f"AutoModelFor{TASKS[task][2]}")
        network = models.from_config(config, dtype=dtype, **attention)
        if quantization_config is not None:
            _quantize(network, quantization_config)
            network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
        if peft is not None:
            network = _attach(network, copy.deepcopy(peft))
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
    quantizer = _inside("AutoHfQuantizer").from_config(quantization_config, pre_quantized=False)
    quantizer.preprocess_model(model=network, device_map=None)
    quantizer.postprocess_model(network)
    if not _four_bit(network):
        raise ValueError(
            f"{type(network).__name__} has nothing to quantise: no linear layer but the skipped "
            f"{', '.join(quantizer.modules_to_not_convert) or 'ones'}. Leave quantization_config out."
        )


def _four_bit(network):
    return [module for module in network.modules() if type(module).__name__ == "Linear4bit"]


def _attach(network, config):
    """The model with its adapter, as peft makes it; an error names the layers that could be a target."""
    import peft

    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
    if config.is_prompt_learning and kind is peft.PeftModel:
        raise ValueError(f'{type(config).__name__} needs its task: pass task_type="CAUSAL_LM", "SEQ_CLS" ... to it.')
    layers = {name.rpartition(".")[2] for name, module in network.named_modules() if hasattr(module, "in_features")}
    layers |= {name.rpartition(".")[2] for name, module in network.named_modules() if type(module).__name__ == "Conv1D"}
    wanted = getattr(config, "target_modules", None)
    try:
        return kind(network, config)
    except ValueError as error:
        if "arget modules" not in str(error) and "target_modules" not in str(error):
            raise
        wanted = [wanted] if isinstance(wanted, str) else sorted(wanted or [])
        close = [match for name in wanted for match in get_close_matches(name, layers, 1)]
        hint = f" (closest: {', '.join(close)})" if close else ""
        raise ValueError(
            f"{type(network).__name__} has no layer named {', '.join(wanted) or 'by default in peft'}{hint}. "
            f'target_modules can be "all-linear" or a list of: {", ".join(sorted(layers))}.'
        ) from error


def _fill(network, dtype):
    """Shapes become fake tensors on the device, tied ones stay tied; 4-bit weights get their constants."""
    made, four_bit = {}, {id(module.weight): module for module in _four_bit(network)}

    def fake(old):
        if id(old) in four_bit:
            return _packed(four_bit[id(old)], dtype)
        new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
        return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new

    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None:
                    if id(old) not in made:
                        made[id(old)] = (fake(old), old)  # with `old`, so that its id is not given to another
                    tensors[name] = made[id(old)][0]


def _inputs(config, task, batch, length, target_length, padding):
    def ids(*shape):
        return torch.zeros(shape, dtype=torch.long)

    inputs = {"input_ids": ids(batch, length)}
    if padding:
        inputs["attention_mask"] = ids(batch, length)
    if task == "QUESTION_ANS":
        return inputs | {"start_positions": ids(batch), "end_positions": ids(batch)}
    shape = {"SEQ_CLS": (batch,), "SEQ_2_SEQ_LM": (batch, target_length)}.get(task, (batch, length))
    labels = ids(*shape)
    return inputs | {"labels": labels.float() if task == "SEQ_CLS" and config.num_labels == 1 else labels}


def _train(network, inputs, optim, gradient_accumulation_steps, autocast, ledger, device, before_step, after_step):
    """Two optimizer steps, as any training loop does them; the second one's passes are taken from the first one's."""
    optimizer = _optimizer(optim, network, device)
    for _ in range(min(gradient_accumulation_steps, 2)):  # from the second pass on, all are alike
        with torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext():
            loss = network(**inputs).loss
        (loss / gradient_accumulation_steps).backward()
        del loss
    passes = ledger.passes()
    for _ in range(STEPS):
        before_step(optimizer)
        optimizer.step()
        after_step(optimizer)
        if ledger.step == STEPS:
            ledger.again(*passes)
    optimizer.zero_grad()


def _optimizer(optim, network, device):
    """The optimizer that the Trainer makes for this name."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if optim.startswith("adamw_torch"):
        fused = optim == "adamw_torch_fused"
        how = {"fused": True} if fused else {"foreach": device == "cuda"}  # torch's choice, which needs a real device
        return torch.optim.AdamW(parameters, lr=1e-4, **how)
    if optim == "sgd":
        return torch.optim.SGD(parameters, lr=1e-4, foreach=device == "cuda")
    if optim == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=1e-4, scale_parameter=False, relative_step=False)
    return _adamw_8bit(parameters, network)


def _count(network):
    """Trainable and all parameters; of a 4-bit weight the numbers that it stands for."""
    sizes = [
        (math.prod(p.quant_state.shape) if hasattr(p, "quant_state") else p.numel(), p.requires_grad)
        for p in network.parameters()
    ]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


# ---- Measure --------------------------------------------------------------------------------------------


class measure(transformers.TrainerCallback):
    """Measures a training: a context manager, and a callback for the `Trainer`; one meaning on every device.

    As a context manager it needs the model, made and on its device before. After the block, or during it, it has
    `peak`, `split`, `phase`, `phases`, `timeline`, `trainable` and `total`, as a `Prediction` has, and `source`: on a
    CPU the live tensors are added up; on CUDA the allocator is read, and the split is that of the live tensors in the
    first two steps (what the allocator has beyond them counts as temporaries); `requested` and `reserved` are the
    allocator's too. It resets the allocator's peak. Evaluation is a phase of its own. `ValueError` without a model.

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
        self.ledger = _Ledger(device, BLOCK if device.type == "cuda" else 1)
        self.open.callback(self.ledger.close)
        before_step, after_step = self.open.enter_context(_watching(self.model, self.ledger))
        self.open.callback(register_optimizer_step_pre_hook(before_step).remove)
        self.open.callback(register_optimizer_step_post_hook(after_step).remove)
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        """Ends the measurement; only needed after a training with the callback was broken off by an error."""
        self.open.close()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.model = model
        self.__enter__()

    def on_train_end(self, args, state, control, **kwargs):
        self.stop()

    def __getattr__(self, name):
        ledger = self.__dict__.get("ledger")
        if name not in ("peak", "split", "phase", "phases", "timeline", "requested", "reserved") or ledger is None:
            raise AttributeError(f"a measurement has no {name}" + ("" if ledger else " yet"))
        return getattr(ledger, name)

    @property
    def peak_gib(self):
        return self.peak / GIB

    @property
    def source(self):
        device = self.ledger.device.type
        return f"measured on {device}: " + ("the allocator" if self.ledger.on_cuda else "live tensors")

    def __repr__(self):
        return _shown(self.source, self) if self.ledger else "nothing measured yet"


_here = threading.local()  # the measurement that runs in this thread


# ---- Fits -----------------------------------------------------------------------------------------------


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
            return f"{self.answer}: {self.why} No change that was tried makes it fit."
        change = ", ".join(f"{name}={_short(value)}" for name, value in self.change.items())
        return f"{self.answer}: {self.why} With {change} it fits: peak {self.changed.peak_gib:.1f} GiB."


def fits(prediction, device):
    """Whether a predicted training fits into a device ("cuda", a torch.device) or into so many GiB: yes, no or tight.

    Beside the peak a GPU has to hold CUDA itself (`OUTSIDE_GIB`), and the allocator cannot use every piece (`SLACK`):
    with both it is "yes", with CUDA alone "tight". If not yes, the smallest change that makes it fit is looked for by
    predicting: smaller batches with more accumulation, then checkpointing, then LoRA, then QLoRA, then shorter rows.
    That takes as long as predictions take. `ValueError` when there is no such device, or no size above 0.

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
    outside = f" and about {OUTSIDE_GIB} for CUDA itself" if prediction.device == "cuda" else ""
    why = f"peak {prediction.peak_gib:.1f} GiB ({largest}){outside}, of {capacity:.1f} GiB."
    if answer == "yes" or not prediction.settings:
        return Fit(answer, margin, why)
    change, changed, tried = _smallest_change(prediction, capacity)
    return Fit(answer, margin, why, change, changed, tuple(tried))


def _capacity_gib(device):
    if isinstance(device, (int, float)) and not isinstance(device, bool):
        if not device > 0:
            raise ValueError(f"{device} GiB is no size of a device; pass a number above 0, such as 24.")
        return float(device)
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f'device {device!r} is neither GiB, such as 24, nor a device, such as "cuda".') from None
    if device.type == "cpu":
        import psutil

        return psutil.virtual_memory().total / GIB
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"this machine has no {device.type} device that can be asked; pass its GiB, such as 24.")
    return torch.cuda.get_device_properties(device).total_memory / GIB


def _verdict(prediction, capacity):
    needed = prediction.peak_gib + (OUTSIDE_GIB if prediction.device == "cuda" else 0)
    margin = capacity - needed
    if margin < 0:
        return "no", margin
    return ("yes" if margin >= SLACK * prediction.peak_gib else "tight"), margin


def _smallest_change(prediction, capacity):
    """The first level of `_levels` that fits, with the largest batch that does; and all that was tried on the way."""
    settings, tried = prediction.settings, []

    def attempt(change):
        try:
            changed = predict(**settings | change)
        except ValueError as error:  # such as QLoRA on a model without linear layers
            tried.append({"change": change, "peak_gib": None, "answer": str(error)})
            return None
        answer = _verdict(changed, capacity)[0]
        tried.append({"change": change, "peak_gib": changed.peak_gib, "answer": answer})
        return changed if answer == "yes" else None

    for level in _levels(settings):
        changes = [level] * bool(level) + [level | smaller for smaller in _smaller_batches(settings)]
        found = functools.cache(lambda i, changes=changes: attempt(changes[i]))
        if changes and found(0):
            return changes[0], found(0), tried
        if changes and found(len(changes) - 1):  # the peak falls with the batch: look for the first that fits
            first = bisect.bisect_left(range(len(changes)), True, key=lambda i: found(i) is not None)
            return changes[first], found(first), tried
    return None, None, tried


def _smaller_batches(settings):
    """Half the batch and twice the accumulation, and so on down to one row: as many rows in a step."""
    batch, accumulation = settings["batch"], settings["gradient_accumulation_steps"]
    sizes = [batch // 2**k for k in range(1, batch.bit_length()) if batch % 2**k == 0]
    sizes += [1] * (batch > 1 and 1 not in sizes)
    return [{"batch": size, "gradient_accumulation_steps": accumulation * batch // size} for size in sizes]


def _levels(settings):
    """Changes from the one that alters least of the result to the one that alters most; each keeps those before."""
    import peft

    yield {}
    slower = {} if settings["activation_checkpointing"] else {"activation_checkpointing": True}
    if slower:
        yield slower
    method = {}
    if settings["peft"] is None:
        task = _task(_configuration(settings["model"]), settings["task"], None)
        task = task if task in peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING else None
        lora = {"peft_type": "LORA", "task_type": task, "target_modules": "all-linear"}
        method = {"peft": peft.get_peft_config(lora)}
        yield method
        if slower:
            yield method | slower
    if settings["quantization_config"] is None and getattr(settings["peft"], "is_prompt_learning", False) is False:
        four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        compute = settings["autocast"] or settings["dtype"] or "bfloat16"
        four_bit["bnb_4bit_compute_dtype"] = str(compute).removeprefix("torch.")
        method = method | {"quantization_config": transformers.BitsAndBytesConfig.from_dict(four_bit)}
        yield method | slower
    length = settings["length"]
    while (length := length // 2) >= 64:
        yield method | slower | {"length": length}


# ---- What both are made of: a ledger of live storages, and what tells it the phase -----------------------


class _Ledger:
    """Bytes of the storages that are alive, by part; the highest of each pass in turn; the split at the highest of all.

    On CUDA the highest are those of the allocator, and what it has beyond the live storages counts as temporaries.
    """

    def __init__(self, device, block):
        self.device, self.block = torch.device(device), block
        self.live, self.now, self.at_highest = {}, Counter(), Counter()  # by storage; by part, now and then
        self.bytes = self.highest = self.made = self.made_at_highest = 0
        self.timeline, self.step, self.lock = [], 1, threading.RLock()  # other threads may free what this one made
        self.on_cuda, self.requested, self.reserved = self.device.type == "cuda", None, None
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self.enter("forward")

    def enter(self, phase):
        """A new point of the timeline; but between two steps the next forward pass has begun already."""
        self._ask_the_allocator()
        last = self.timeline[-1] if self.timeline else {}
        if phase != "forward" or (last.get("phase"), last.get("step")) != ("forward", self.step):
            self.timeline.append({"step": self.step, "phase": phase, "bytes": 0})
        self._note(0 if self.on_cuda else self.bytes)

    def add(self, tensor, part, rename=False):
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        with self.lock:
            entry = self.live.get(key)
            if entry is None:
                size = -(-storage.nbytes() // self.block) * self.block
                if size:
                    self.made += 1
                    self.live[key] = [size, part, self.made]
                    self.now[part] += size
                    self.bytes += size
                    weakref.finalize(storage, self._drop, key).atexit = False
                    self._compare()
            elif rename and entry[1] != part:
                counts = [self.now]
                if entry[2] <= self.made_at_highest:  # it was alive then, and was already what we now know it to be
                    counts.append(self.at_highest)
                for count in counts:
                    count[entry[1]] -= entry[0]
                    count[part] += entry[0]
                entry[1] = part

    def _drop(self, key):
        with self.lock:
            size, part, _ = self.live.pop(key)
            self.now[part] -= size
            self.bytes -= size

    def _compare(self):
        if not self.on_cuda:
            self._note(self.bytes)
        if self.bytes > self.highest:
            self.highest, self.at_highest, self.made_at_highest = self.bytes, Counter(self.now), self.made

    def _note(self, size):
        self.timeline[-1]["bytes"] = max(self.timeline[-1]["bytes"], size)

    def _ask_the_allocator(self):
        """The highest since it was last asked; the host keeps these counts, so nothing has to wait for the device."""
        if self.on_cuda and self.timeline:
            stats = torch.cuda.memory_stats(self.device)
            self._note(stats["allocated_bytes.all.peak"])
            self.requested = max(self.requested or 0, stats["requested_bytes.all.peak"])
            self.reserved = max(self.reserved or 0, stats["reserved_bytes.all.peak"])
            torch.cuda.reset_peak_memory_stats(self.device)

    def passes(self):
        """The passes since the start: their timeline, and the highest in them with its split."""
        return list(self.timeline), self.highest, Counter(self.at_highest), self.made_at_highest

    def again(self, timeline, highest, at_highest, made):
        """The same passes in the step that has just begun, beside what the optimizer keeps by now."""
        kept = self.now["optimizer"]
        first, *others = ({"step": self.step, "phase": p["phase"], "bytes": p["bytes"] + kept} for p in timeline)
        self._note(first["bytes"])
        self.timeline += others
        if highest + kept > self.highest:
            self.highest, self.made_at_highest = highest + kept, made
            self.at_highest = at_highest + Counter(optimizer=kept)

    def close(self):
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        self._ask_the_allocator()
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
        phases = {}
        for point in self.timeline:
            phases[point["phase"]] = max(phases.get(point["phase"], 0), point["bytes"])
        return phases

    @property
    def split(self):
        parts = {part: self.at_highest.get(part, 0) for part in PARTS}
        return parts | {"temporaries": parts["temporaries"] + max(0, self.peak - self.highest)}


@contextlib.contextmanager
def _watching(model, ledger):
    """While it is open, every storage that an operator of this thread makes is in the ledger, and the phases are told.

    Gives two functions to call with the optimizer, before and after its step.
    """
    thread, mode = threading.current_thread(), contextlib.ExitStack()

    def keep_gradient(parameter):
        if parameter.grad is not None:
            ledger.add(parameter.grad, "gradients", rename=True)

    def keep_state(optimizer):
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    ledger.add(value, "optimizer", rename=True)

    def before_step(optimizer, *_):
        if threading.current_thread() is thread:  # as a hook it is called for every optimizer of the process
            keep_state(optimizer)
            ledger.enter("step")

    def after_step(optimizer, *_):
        if threading.current_thread() is thread:
            keep_state(optimizer)
            ledger.step += 1
            ledger.enter("forward")
            if ledger.on_cuda and ledger.step > STEPS:  # the split is known: from here on only the allocator is asked
                mode.close()

    for parameter in model.parameters():
        ledger.add(parameter, "weights", rename=True)
        keep_gradient(parameter)
    for buffer in model.buffers():
        ledger.add(buffer, "weights", rename=True)
    four_bit = _four_bit(model)
    for module in four_bit:
        for constant in _constants(module.weight.quant_state):
            ledger.add(constant, "quantisation constants", rename=True)

    def before_forward(*_):
        ledger.enter("forward" if torch.is_grad_enabled() else "evaluation")

    def after_forward(*_):
        if torch.is_grad_enabled():
            ledger.enter("backward")

    handles = [model.register_forward_pre_hook(before_forward), model.register_forward_hook(after_forward)]
    handles += [p.register_post_accumulate_grad_hook(keep_gradient) for p in model.parameters() if p.requires_grad]
    try:
        with mode:
            mode.enter_context(_dispatch(ledger, four_bit))
            yield before_step, after_step
    finally:
        for handle in handles:
            handle.remove()


def _dispatch(ledger, four_bit):
    """A mode that torch calls for each operator, forward and backward: what it returns goes into the ledger."""
    in_backward, tree_iter = _inside("_current_graph_task_id"), _inside("tree_iter")
    gemm_4bit = _inside("gemm_4bit").default if four_bit else None

    class Dispatch(_inside("TorchDispatchMode")):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is gemm_4bit:
                with self:  # this operator hides a temporary as large as the weight
                    return _gemm_4bit(*args, **(kwargs or {}))
            out = function(*args, **(kwargs or {}))
            if ledger.timeline[-1]["phase"] == "step":
                part = "temporaries"
            elif in_backward() == -1:
                part = "activations"
            else:
                part = "recomputed activations" if torch.is_grad_enabled() else "temporaries"
            for value in (out,) if isinstance(out, torch.Tensor) else tree_iter(out):
                if isinstance(value, torch.Tensor):
                    ledger.add(value, part)
            return out

    return Dispatch()


# ---- The private surface: all that may break with a new torch, transformers or bitsandbytes is here -------
# tests/test_memory.py asks for each of these names, and for what each is taken to do.

PRIVATE = (
    "torch:UntypedStorage._cdata",
    "torch:ops.aten._scaled_dot_product_attention_math",
    "torch:ops.aten._scaled_dot_product_efficient_attention",
    "torch:ops.aten._scaled_dot_product_flash_attention",
    "torch._C:_current_graph_task_id",
    "torch._subclasses.fake_tensor:FakeTensorMode",
    "torch.optim.adam:_get_value",
    "torch.utils._python_dispatch:TorchDispatchMode",
    "torch.utils._pytree:tree_iter",
    "transformers.masking_utils:_ignore_causal_mask_sdpa",
    "transformers.masking_utils:find_packed_sequence_indices",
    "transformers.modeling_utils:local_torch_dtype",
    "transformers.quantizers:AutoHfQuantizer",
    "bitsandbytes.functional:QuantState",
    "bitsandbytes.functional:create_dynamic_map",
    "bitsandbytes.optim:AdamW8bit.get_config",
    "torch:ops.bitsandbytes.dequantize_4bit",
    "torch:ops.bitsandbytes.dequantize_blockwise",
    "torch:ops.bitsandbytes.gemm_4bit",
)


@functools.cache
def _inside(name):
    """What one of the private names stands for, by its last word."""
    return _find(next(where for where in PRIVATE if where.endswith((f".{name}", f":{name}"))))


def _find(where):
    """What "module:name" stands for; `RuntimeError` with the whole name when it is gone."""
    try:
        if "bitsandbytes" in where:
            importlib.import_module("bitsandbytes")  # gives torch its operators
        return pkgutil.resolve_name(where)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"{where} is not there ({error}): helpers.memory does not know this version of the library. "
            "Install the one of constraints.txt."
        ) from error


_turn = threading.RLock()


def _alone(original):
    """Stands for a function that other threads may only call after this prediction."""
    return original()


@contextlib.contextmanager
def _instead(functions):
    """Other functions in place of the libraries' own, for this thread only; one thread at a time.

    `functions` has a function for each "module:name"; it gets the one that it stands for, then the arguments.
    """
    thread = threading.get_ident()

    def for_all_threads(mine, original):
        @functools.wraps(original)
        def function(*args, **kwargs):
            if threading.get_ident() == thread:
                return mine(original, *args, **kwargs)
            with _turn if mine is _alone else contextlib.nullcontext():
                return original(*args, **kwargs)

        return function

    with _turn, contextlib.ExitStack() as put_back:
        for where, mine in functions.items():
            owner, name = re.fullmatch(r"(.+)[.:](\w+)", where).groups()
            owner, original = _find(owner), _find(where)
            put_back.callback(setattr, owner, name, original)
            setattr(owner, name, for_all_threads(mine, original))
        try:
            yield
        finally:
            thread = None  # whoever kept one of them has the original from now on


class _Making(torch.overrides.TorchFunctionMode):
    """What is made without a dtype gets this one; torch's own default, which transformers sets, is for all threads."""

    MAKERS = (
        torch.empty, torch.ones, torch.zeros, torch.rand, torch.randn, torch.full, torch.arange, torch.linspace,
        torch.logspace, torch.eye, torch.tensor, torch.as_tensor, torch.scalar_tensor,
    )  # fmt: skip

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function not in self.MAKERS or (kwargs or {}).get("dtype") or hasattr(args[0] if args else None, "dtype"):
            return made
        return made.to(self.dtype) if made.dtype == torch.get_default_dtype() else made


def _handle(original, logger, entry):
    if entry.levelno >= logging.ERROR:
        original(logger, entry)


BUILDING = {  # a model that is only built to be counted: its dtype is no default, and the libraries give no advice
    "transformers.modeling_utils:local_torch_dtype": lambda original, dtype, *_: _Making(dtype),
    "warnings:showwarning": lambda original, *_, **__: None,
    "logging:Logger.handle": _handle,
}


def _operators(device, optim, autocast, encoder_decoder):
    """What fake CPU tensors are trained with; fake CUDA ones cannot be made without CUDA, so they take its operators.

    They have no values. Where the libraries look at values, they are told what they would see: the step is 1, no rows
    are packed, no label is left out, and the labels of an encoder-decoder are not padded.
    """
    changed = {
        "transformers.masking_utils:find_packed_sequence_indices": lambda original, *_, **__: None,
        "torch.optim.adam:_get_value": lambda original, _: 1.0,
        "torch:Tensor.nonzero": lambda original, x: torch.zeros(x.numel(), x.dim(), dtype=torch.long),
    }
    if autocast:
        changed["torch:clear_autocast_cache"] = _alone  # the copies of this thread's weights would be gone too
    if optim == "adamw_8bit":
        changed["bitsandbytes.functional:create_dynamic_map"] = lambda original, *_, **__: torch.empty(256)
    if encoder_decoder:
        changed["transformers.masking_utils:_ignore_causal_mask_sdpa"] = (
            lambda original, padding_mask=None, *args, **kwargs: original(None, *args, **kwargs)
        )
    return changed | (_cuda_operators(autocast) if device == "cuda" else {})


def _cuda_operators(autocast):
    """CUDA's dropout keeps a mask of one byte each, its attention never the scores, its autocast does some in fp32."""

    def dropout(original, x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, True)[0] if training and p > 0 else x

    def attention(original, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if autocast:
            q, k, v = (tensor.to(autocast) for tensor in (q, k, v))
        if attn_mask is None and q.dtype != torch.float32 and q.shape[-1] <= 256:
            flash = _inside("_scaled_dot_product_flash_attention")
            return flash(q, k, v, dropout_p, is_causal, scale=scale)[0]
        if enable_gqa and q.shape[1] != k.shape[1]:  # only flash attention knows shared heads
            math_only = _inside("_scaled_dot_product_attention_math")
            return math_only(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True)[0]
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -math.inf)
        if attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        efficient = _inside("_scaled_dot_product_efficient_attention")
        return efficient(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0]

    def in_fp32(original, *args, **kwargs):
        args = [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        return original(*args, **kwargs)

    operators = {"dropout": dropout, "scaled_dot_product_attention": attention}
    if autocast:
        operators |= dict.fromkeys(("layer_norm", "softmax", "log_softmax", "cross_entropy"), in_fp32)
    return {f"torch.nn.functional:{name}": function for name, function in operators.items()}


def _packed(module, dtype):
    """A 4-bit weight as bitsandbytes keeps it: two numbers a byte, and constants for each block of 64."""

    def empty(count, dtype):
        return torch.empty(count, dtype=dtype, device="cpu")

    old, shape, state_of = module.weight, (module.out_features, module.in_features), _inside("QuantState")
    numbers = math.prod(shape)
    blocks = -(-numbers // old.blocksize)
    nested = {}
    if old.compress_statistics:  # the constants are themselves quantised: 8 bits, in blocks of 256
        outer = empty(-(-blocks // 256), torch.float32)
        outer = state_of(absmax=outer, blocksize=256, code=empty(256, torch.float32), dtype=torch.float32)
        nested = {"offset": empty((), torch.float32), "state2": outer}
    weight = empty((-(-numbers // (2 * old.quant_storage.itemsize)), 1), old.quant_storage)
    weight = torch.nn.Parameter(weight, requires_grad=False)
    weight.quant_state = state_of(
        absmax=empty(blocks, torch.uint8 if nested else torch.float32), shape=torch.Size(shape), dtype=dtype,
        blocksize=old.blocksize, code=empty(16, torch.float32), quant_type=old.quant_type, **nested,
    )  # fmt: skip
    module.quant_state = weight.quant_state
    return weight


def _constants(state):
    tensors = [state.absmax, state.code, state.offset, *(_constants(state.state2) if state.state2 is not None else ())]
    return [tensor for tensor in tensors if tensor is not None]


def _gemm_4bit(x, weight, shape, absmax, blocksize, quant_type, bias=None, absmax_8bit=None, code=None, offset=None):
    """bitsandbytes' product with a 4-bit weight, in the steps of its CPU kernel (and of CUDA's, for many rows)."""
    ops = torch.ops.bitsandbytes
    if absmax_8bit is not None:
        absmax = ops.dequantize_blockwise.default(absmax_8bit, absmax, code, 256, torch.float32) + offset
    weight = ops.dequantize_4bit.default(weight, absmax, blocksize, quant_type, shape, x.dtype)
    return torch.nn.functional.linear(x, weight, bias)


def _adamw_8bit(parameters, network):
    from bitsandbytes.optim import AdamW8bit

    optimizer = AdamW8bit(parameters, lr=1e-4)
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding)}
    usual = optimizer.get_config

    def get_config(group, index, settings):  # the Trainer has the state of embeddings kept in 32 bits
        in_full = {"optim_bits": 32} if id(parameters[index]) in embeddings else {}
        return usual(group, index, settings) | in_full

    optimizer.get_config = get_config
    return optimizer


# ---- Checks and texts -----------------------------------------------------------------------------------


def _check_choices(settings):
    for name in ("batch", "length", "gradient_accumulation_steps", "target_length"):
        value = settings[name]
        if value is None and name == "target_length":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; pass a whole number of at least 1.")
    if settings["optim"] not in OPTIMIZERS:
        close = get_close_matches(str(settings["optim"]), OPTIMIZERS, 1)
        hint = f" (closest: {close[0]})" if close else ""
        raise ValueError(f"optim {settings['optim']!r} cannot be predicted{hint}: {', '.join(OPTIMIZERS)} can.")
    if settings["device"] not in ("cuda", "cpu"):
        raise ValueError(f'device {settings["device"]!r}: predictions are for "cuda" or "cpu".')
    if settings["quantization_config"] is not None and settings["peft"] is None:
        raise ValueError("4-bit weights cannot be trained: pass peft=LoraConfig(...) beside quantization_config.")


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


def _short(value):
    kind = type(value).__name__
    return f"{kind}(...)" if hasattr(value, "to_dict") else repr(value)


def _shown(what, memory):
    lines = [f"{what}: peak {_size(memory.peak)}, in the {memory.phase} phase"]
    lines += [
        f"  {part:22} {_size(size):>10}  {size / memory.peak:4.0%}" for part, size in memory.split.items() if size
    ]
    if memory.total:
        share = memory.trainable / memory.total
        lines.append(f"  trainable: {memory.trainable:,} of {memory.total:,} parameters ({share:.2%})")
    lines += [f"  - {sentence}" for sentence in getattr(memory, "assumes", ())]
    return "\n".join(lines)


def _size(size):
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.2f} MiB"
