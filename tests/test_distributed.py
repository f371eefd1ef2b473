"""Beyond one process: the scripts that notebook 09 writes, started as real processes, killed, and started again.

What a run of two processes computes, and that a kill loses nothing, is tested always; searches, streams and
launches that hang with RELEASE=1. Two processes on the processor stand for two GPUs. A launch has a time limit, so that
a rank that waits for ever fails a test.
"""

import ast
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import nbformat
import pytest
from test_take_home import messages, printed_accuracy, take_home, written

from helpers import data, env, text
from notebooks import NOTEBOOKS

NOTEBOOK = NOTEBOOKS / "09_beyond_one_machine.ipynb"
SEARCH = NOTEBOOKS / "more" / "09c_search.ipynb"
MODEL = env.DATA / "models" / "tiny-decoder"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "localhost:0"]  # 0: a port that is free, as other tests may run beside
ROUNDING = 1e-5  # between sums of the same numbers in another order, of losses near 1

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes as only a Unix can"),
]


def begin(folder, *command, **environment):
    """Start Python in a folder; its output goes to a file, as a pipe that nobody reads would stop it."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    with open(folder / f"log-{time.monotonic_ns()}.txt", "w") as log:
        options = dict(cwd=folder, env=settings, stdout=log, stderr=subprocess.STDOUT)
        process = subprocess.Popen([sys.executable, *map(str, command)], **options)
    process.log = Path(log.name)
    return process


def finish(process, ends=0, timeout=200):
    """Wait for a process and return what it printed; it must end with this code, and in time."""
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # a launcher then stops its ranks, which are in sessions of their own
        code = f"nothing within {timeout} s, and {process.wait(60)} when it was stopped"
    assert code == ends, f"ended with {code}, not {ends}:\n{process.log.read_text()[-4000:]}"
    return process.log.read_text()


def texts_of(notebook):
    """The strings that a notebook assigns, by name: its scripts."""
    found = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                named = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
                if named and isinstance(getattr(node.value, "value", None), str):
                    found[node.targets[0].id] = node.value.value
    return found


def titles(part, count):
    from transformers import AutoTokenizer

    rows = data.read(env.DATA / "titles" / f"{part}.json").select(range(count))
    talks = data.to_messages(rows, prompt="{review} What is its title?", answer="title")
    examples = text.tokenize_chat(talks, AutoTokenizer.from_pretrained(MODEL))
    return examples.select_columns(["input_ids", "attention_mask", "labels"])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the scripts of the notebook and rows to train on."""
    folder, texts = tmp_path_factory.mktemp("home"), texts_of(NOTEBOOK) | texts_of(SEARCH)
    (folder / "watch.py").write_text(texts["watch_script"])
    (folder / "train.py").write_text(texts["train_script"] + texts["MAIN"])
    (folder / "search.py").write_text(texts["search_script"] + texts["END"])
    titles("train", 96).save_to_disk(folder / "rows")
    titles("validation", 32).save_to_disk(folder / "judged")
    return folder


def options(home, name, batch, **changes):
    chosen = dict(model=MODEL, rows=home / "rows", max_steps=12, save_steps=4, logging_steps=1, learning_rate=1e-3)
    chosen |= dict(report_to="none", disable_tqdm=True, use_cpu=True, output_dir=home / name)
    chosen |= dict(per_device_train_batch_size=batch, **changes)
    return [str(part) for key, value in chosen.items() for part in (f"--{key}", value)]


def ranks(home, name):
    return [json.loads(file.read_text()) for file in sorted((home / name).glob("rank-*.json"))]


@pytest.fixture(scope="module")
def train(home):
    """The training of the script, in this process."""
    sys.path.insert(0, str(home))
    yield runpy.run_path(str(home / "train.py"))["main"]
    sys.path.remove(str(home))
    sys.modules.pop("watch", None)


@pytest.fixture(scope="module")
def one(home, train):
    train(options(home, "one", batch=8))
    return ranks(home, "one")


@pytest.fixture(scope="module")
def two(home):
    """Two processes, one of which is killed in step 10; what is left of them, and what they then come to."""
    command = [*TORCHRUN, "train.py", *options(home, "two", batch=4)]
    finish(begin(home, *command, "--kill_at", 10), ends=1)
    left = {path.name for path in (home / "two").iterdir()}
    finish(begin(home, *command))
    return left, ranks(home, "two")


@pytest.fixture(scope="module")
def sharded(home):
    changes = dict(fsdp_size=2, save_only_model=True)
    finish(begin(home, *TORCHRUN, "train.py", *options(home, "sharded", batch=4, **changes)))
    return ranks(home, "sharded")


def same_losses(found, wanted):
    assert len(found) == len(wanted) == 12
    assert found == pytest.approx(wanted, abs=ROUNDING, rel=0)


def test_two_processes_compute_what_one_does_and_a_killed_rank_loses_nothing(one, two):
    left, two = two
    assert left == {"checkpoint-4", "checkpoint-8"}
    assert [rank["resumed"] for rank in two] == [8, 8]
    assert [rank["processes"] for rank in two] == [2, 2]
    assert two[0]["losses"] == two[1]["losses"]
    same_losses(two[0]["losses"], one[0]["losses"])
    assert max(one[0]["losses"]) - min(one[0]["losses"]) > 1000 * ROUNDING  # so the losses can tell


def test_sharded_processes_compute_what_one_does_and_hold_half(home, one, sharded):
    from transformers import AutoModelForCausalLM

    same_losses(sharded[0]["losses"], one[0]["losses"])
    for part, size in one[0]["held"].items():
        assert [rank["held"][part] for rank in sharded] == pytest.approx([size / 2, size / 2], rel=0.01), part
    saved = [AutoModelForCausalLM.from_pretrained(home / name / "checkpoint-12") for name in ("one", "sharded")]
    start, (a, b) = AutoModelForCausalLM.from_pretrained(MODEL), (model.state_dict() for model in saved)
    moved = sum((a[key] - value).square().sum() for key, value in start.state_dict().items()).sqrt()
    apart = sum((a[key] - b[key]).square().sum() for key in a).sqrt()  # of all: AdamW makes much of one tiny gradient
    assert apart < moved / 100, f"{apart:.2e} apart after moving {moved:.2e}"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux counts the bytes")
def test_what_data_parallel_ranks_send_is_the_formula(one, two):
    weights = one[0]["held"]["weights"]
    for rank in two[1]:
        steps = [after - before for before, after in zip(rank["sent"], rank["sent"][1:], strict=False)]
        assert median(steps) == pytest.approx(2 * (1 / 2) * weights, rel=0.01)


@pytest.mark.release
def test_a_checkpoint_of_one_goes_on_as_two(home, one):
    shutil.copytree(home / "one" / "checkpoint-4", home / "more" / "checkpoint-4")
    finish(begin(home, *TORCHRUN, "train.py", *options(home, "more", batch=4)))
    found = ranks(home, "more")
    assert [rank["resumed"] for rank in found] == [4, 4]
    same_losses(found[0]["losses"], one[0]["losses"])


def test_a_checkpoint_of_two_goes_on_as_one(home, train, one, two):
    shutil.copytree(home / "two" / "checkpoint-8", home / "alone" / "checkpoint-8")
    train(options(home, "alone", batch=8))
    (found,) = ranks(home, "alone")
    assert found["resumed"] == 8
    same_losses(found["losses"], one[0]["losses"])


STAND_INS = {  # for the commands of Slurm, on one machine
    "scontrol": "echo localhost",
    "srun": 'while [ "$1" != bash ]; do shift; done\nexec "$@"',
    "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
}


def test_the_slurm_file_starts_one_training_by_all_processes(home, tmp_path):
    (tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (home / "job.slurm").write_text(texts_of(NOTEBOOK)["job_script"])
    two = dict(compute_environment="LOCAL_MACHINE", distributed_type="MULTI_GPU", use_cpu=True, num_processes=8)
    (home / "two.yaml").write_text(json.dumps(two | dict(num_machines=1, mixed_precision="no", rdzv_backend="static")))
    slurm = dict(SLURM_JOB_NODELIST="gpu[1-2]", SLURM_NNODES="1", SLURM_NODEID="0", SLURM_CPUS_PER_TASK="2")
    slurm |= dict(SLURM_GPUS_ON_NODE="2", CONFIG="two.yaml", PORT="0", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    runs_bash = "import os, sys; os.execvp('bash', ['bash', 'job.slurm', *sys.argv[1:]])"
    finish(begin(home, "-c", runs_bash, *options(home, "slurm", batch=4, max_steps=2), **slurm))
    assert [rank["processes"] for rank in ranks(home, "slurm")] == [2, 2]


@pytest.mark.release
def test_a_launch_that_hangs_is_stopped_with_its_ranks(tmp_path):
    (tmp_path / "hang.py").write_text(
        "import os, time\nopen(os.environ['RANK'], 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    process = begin(tmp_path, *TORCHRUN, "hang.py")
    while not all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"):
        time.sleep(0.2)
    with pytest.raises(AssertionError, match="nothing within 1 s"):
        finish(process, timeout=1)
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text()), 0)


# ---- Streams -------------------------------------------------------------------------------------------------------

READER = """
import json, os, signal, sys
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node

rank, kill_after, seen, *files = sys.argv[1:]
rows = load_dataset("json", data_files=files, split="train", streaming=True)
rows = split_dataset_by_node(rows, int(rank), 2)
if os.path.exists(seen):
    rows.load_state_dict(json.loads(open(seen).readlines()[-1])["state"])
with open(seen, "a") as file:
    for number, row in enumerate(rows, 1):
        file.write(json.dumps({"row": row["row"], "state": rows.state_dict()}) + "\\n")
        file.flush()
        if number == int(kill_after):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.release
@pytest.mark.parametrize("n_files", [3, 4])  # rows are dealt out one by one, or by whole files
def test_a_stream_over_two_killed_ranks_gives_each_row_once(n_files, tmp_path):
    draw = random.Random(n_files)
    (tmp_path / "reader.py").write_text(READER)
    files = [f"part-{number}.jsonl" for number in range(n_files)]
    for number, file in enumerate(files):
        lines = [json.dumps({"row": row}) for row in range(24 * number, 24 * number + 24)]
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    kills = [draw.randint(1, 12 * n_files - 1) for _ in range(2)]

    def start(rank, kill_after):
        cache = {"HF_HOME": str(tmp_path / "cache")}
        return begin(tmp_path, "reader.py", rank, kill_after, f"seen-{rank}.jsonl", *files, **cache)

    def seen(rank):
        return [json.loads(line)["row"] for line in (tmp_path / f"seen-{rank}.jsonl").read_text().splitlines()]

    for process in [start(rank, kills[rank]) for rank in (0, 1)]:
        finish(process, ends=-signal.SIGKILL)
    assert [len(seen(rank)) for rank in (0, 1)] == kills
    for process in [start(rank, 0) for rank in (0, 1)]:
        finish(process)
    assert sorted(seen(0) + seen(1)) == list(range(24 * n_files))
    assert abs(len(seen(0)) - len(seen(1))) <= 24 * (n_files % 2)


# ---- A search ------------------------------------------------------------------------------------------------------


@pytest.mark.release
def test_a_search_over_two_workers_keeps_what_was_finished_when_one_is_killed(home):
    import optuna

    address = f"sqlite:///{home}/study.db"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=address, study_name="rate", direction="minimize")

    def finished():
        return {trial.number: trial for trial in study.trials if trial.state.name == "COMPLETE"}

    call = ["search.py", MODEL, home / "rows", home / "judged", home / "study.db"]
    killed = begin(home, *call, "1", 2, KILL_IN_TRIAL="2")
    other = begin(home, *call, "2", 2)
    finish(killed, ends=-signal.SIGKILL)
    finish(other)
    before = finished()
    assert sorted(trial.user_attrs["worker"] for trial in before.values()) == ["1", "2", "2"]
    assert len({trial.params["learning_rate"] for trial in study.trials}) == len(study.trials) == 4
    (dead,) = [trial for trial in study.trials if trial.number not in before]

    search = runpy.run_path(str(home / "search.py"))["search"]
    best = search(str(MODEL), str(home / "rows"), str(home / "judged"), str(home / "study.db"), "3", 4 - len(before))
    after = finished()
    assert len(after) == 4
    assert all(after[number].value == trial.value for number, trial in before.items())
    assert best.objective == min(trial.value for trial in after.values())
    stale = optuna.storages.RDBStorage(address, heartbeat_interval=1, grace_period=5)
    for _ in range(30):  # the dead one is found out by its silence
        optuna.storages.fail_stale_trials(optuna.load_study(study_name="rate", storage=stale))
        if study.trials[dead.number].state.name == "FAIL":
            return
        time.sleep(1)
    raise AssertionError(f"the killed trial is still {study.trials[dead.number].state.name}")


# ---- Take it with you ----------------------------------------------------------------------------------------------


def test_the_take_home_cell_is_a_script_for_two_processes(tmp_path):
    """With one process it runs in test_take_home."""
    settings, labels = messages(tmp_path / "mine.csv", random.Random(7))
    settings |= {"FILE": "mine.csv", "OUT": "saved", "MODEL": str(env.DATA / "models" / "tiny-encoder")}
    script = written(take_home(NOTEBOOK.stem, settings), tmp_path)
    printed = finish(begin(tmp_path, *TORCHRUN, script), timeout=400)
    assert printed.count("by 2 processes") == 1, printed
    assert printed_accuracy(printed) > max(labels.count(label) for label in set(labels)) / len(labels) + 0.1
