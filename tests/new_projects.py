"""What the tests of `helpers.new` share: small files, projects from a fresh interpreter, their modules."""

import importlib.util
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

from helpers import env

RELEASE = os.environ.get("RELEASE") == "1"  # `make release` runs all combinations
QUICK = {  # six steps, a checkpoint after every second one
    "training.max_steps": 6,
    "training.per_device_train_batch_size": 4,
    "training.eval_strategy": "no",
    "training.save_strategy": "steps",
    "training.save_steps": 2,
    "training.load_best_model_at_end": False,
    "training.logging_steps": 1,
    "training.disable_tqdm": True,
    "training.use_cpu": True,
}
QUICK_TO_WRITE = QUICK | {"generation.max_new_tokens": 6}


def small_file(name, folder, count=50):
    """The first rows of a file in data/."""
    source, file = env.DATA / name, folder / name.replace("/", "-")
    if source.suffix == ".json":
        file.write_text(json.dumps(json.loads(source.read_text(encoding="utf-8"))[:count]), encoding="utf-8")
    else:
        with source.open(encoding="utf-8") as lines:
            file.write_text("".join(islice(lines, count + (source.suffix == ".csv"))), encoding="utf-8")
    return file


def fresh_interpreter(calls, cwd):
    """`python -m helpers.new` for each list of arguments, all in one new process: its imports are slow."""
    code = "import json, sys\nfrom helpers import new\nfor one in json.loads(sys.argv[1]): new.main(one)"
    command = [sys.executable, "-c", code, json.dumps(calls)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def environment(**more):
    here = {"PYTHONPATH": str(env.REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", **here, **more}


def as_options(settings):
    return [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def load(folder, name="train"):
    """The project's train.py as the module `train`, or its predict.py, which imports that."""
    spec = importlib.util.spec_from_file_location(name, Path(folder) / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    for other in ("scoring", "verdict", "report"):
        sys.modules.pop(other, None)
    sys.modules[name] = module
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module
