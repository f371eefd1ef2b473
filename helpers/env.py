"""What this machine is, where models and outputs live, and quiet logs. `python -m helpers.env` prints the machine."""

import logging
import os
import platform
import warnings
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY / "data"
LIBRARIES = ("torch", "transformers", "datasets", "peft", "evaluate")


class ModelNotFound(OSError):
    """The model that was asked for is neither in the repository, nor a folder, nor to be had from the Hub."""


def device():
    """The device that training uses: "cuda", "mps" or "cpu"; the same choice that the `Trainer` makes.

    >>> device() in {"cuda", "mps", "cpu"}
    True

    Taught in notebooks/00_start_here.ipynb, "What this machine is".
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

    Taught in notebooks/00_start_here.ipynb, "What this machine is".
    """
    import torch

    kind = device()
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, memory, bf16 = properties.name, properties.total_memory, torch.cuda.is_bf16_supported()
    else:
        name, memory, bf16 = f"{platform.machine()} {kind}", _system_memory(), kind == "mps"
    return {
        "device": kind,
        "device_name": name,
        "memory_gib": round(memory / 2**30, 1),
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(_usable_cores()),
        "bf16": bf16,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _usable_cores():
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _system_memory():
    """Bytes of memory of this computer."""
    import psutil

    return psutil.virtual_memory().total


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
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on some CPUs it asks for a kernel from the Hub
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def model_path(model):
    """What to pass to `from_pretrained` for a name in `data/models`, a folder, or a Hub id such as "org/name".

    A Hub id is returned as it is, once its `config.json` is in the cache or could be fetched. Raises `ModelNotFound`
    with one clear line when there is no such model or the Hub cannot be reached.

    >>> model_path("tiny-encoder").endswith("tiny-encoder")
    True
    >>> model_path("tiny-encodr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    helpers.env.ModelNotFound: no model "tiny-encodr": data/models has ...tiny-encoder... (closest: tiny-encoder). ...

    Taught in notebooks/00_start_here.ipynb, "One dial".
    """
    folder = DATA / "models" / str(model)
    if (folder / "config.json").exists():
        return str(folder)
    folder = Path(model).expanduser()
    if (folder / "config.json").exists():
        return str(folder)
    if folder.is_dir():
        raise ModelNotFound(f"{folder} has no config.json, so no model. Pass the folder that save_pretrained wrote.")
    if str(model).count("/") == 1 and not str(model).startswith((".", "~", "/")):
        return _from_hub(str(model))
    known = sorted(path.parent.name for path in (DATA / "models").glob("*/config.json"))
    close = "".join(f" (closest: {name})" for name in get_close_matches(str(model), known, 1))
    raise ModelNotFound(
        f'no model "{model}": data/models has {", ".join(known) or "none"}{close}. '
        'Pass one of these, a folder that save_pretrained wrote, or a Hub id such as "org/name".'
    )


def _from_hub(model):
    """Fetch the configuration through the libraries' own Hub code; one clear error instead of their chain of them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        hf_hub_download(model, "config.json")
    except GatedRepoError as error:
        raise ModelNotFound(
            f'"{model}" is gated: accept its licence on its Hub page, run `hf auth login`, and try again.'
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f'the Hub has no model "{model}" that you may see. Check the spelling; if it is private, `hf auth login`.'
        ) from error
    except HFValidationError as error:
        raise ModelNotFound(f'"{model}" cannot be a Hub id: these look like "org/name", without spaces.') from error
    except RemoteEntryNotFoundError as error:
        raise ModelNotFound(
            f'"{model}" on the Hub has no config.json, so it is no whole model. For an adapter, pass its base.'
        ) from error
    except (OSError, RuntimeError) as error:
        raise ModelNotFound(
            f'"{model}" is not in the local cache and the Hub cannot be reached. Connect to the network, run '
            f'`hf download {model}` where there is one and copy the cache, or set MODEL = "tiny-encoder".'
        ) from error
    return model


def fresh_folder(name):
    """A new, empty folder `runs/<name>/001`, `002`, ...: what an earlier run left there is never touched.

    >>> first, second = fresh_folder("doctest"), fresh_folder("doctest")
    >>> first != second
    True

    Taught in notebooks/00_start_here.ipynb, "One small run".
    """
    parent = Path(os.environ.get("HELPERS_RUNS", "runs")) / name
    taken = [int(path.name) for path in parent.glob("[0-9]*") if path.name.isdigit()]
    number = max(taken, default=0) + 1
    while True:
        folder = parent / f"{number:03d}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another process took it
            number += 1


def main():
    """Print what this machine is, for a bug report or a record."""
    for name, value in {**machine(), **versions()}.items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
