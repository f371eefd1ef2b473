"""What all tests share: no network, outputs outside of the checkout, the order of files, what only a release runs."""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HELPERS_RUNS", tempfile.mkdtemp(prefix="runs-"))
os.environ.setdefault("TEST_SEED", str(random.randrange(10_000)))  # the workers, which begin later, have the same one
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data" / "recipes"))

RELEASE = os.environ.get("RELEASE") == "1"
SECONDS = {  # of a core, roughly, for the test files that take longest; those of a notebook are on record
    "test_new_runs.py": 120,
    "test_take_home.py": 110,
    "test_distributed.py": 75,
    "test_browser.py": 90,
    "test_sweeps.py": 60,
    "test_new_families.py": 20,
    "test_preflight.py": 60,
    "test_memory.py": 50,
    "test_new.py": 40,
    "test_recipes.py": 40,
    "test_data_property.py": 30,
    "test_cases.py": 15,
    "test_real.py": 45,
    "test_resume.py": 30,
    "test_widgets.py": 30,
    "test_serving.py": 30,
}


def seconds(path):
    """About how long the tests of a file take."""
    cost = Path(__file__).resolve().parents[1] / "data" / "results" / "notebooks" / f"{path.stem}.json"
    if path.suffix == ".ipynb" and cost.exists():
        return json.loads(cost.read_text(encoding="utf-8"))["metrics"]["seconds"]
    return SECONDS.get(path.name, 0)


def pytest_configure(config):
    config.addinivalue_line("markers", "release: takes minutes and is run by `make release` only (RELEASE=1)")


def pytest_collection_modifyitems(items):
    """Long files first, so that both workers end together; tests of a release are skipped in other runs."""
    lengths = {path: seconds(path) for path in {item.path for item in items}}
    items.sort(key=lambda item: -lengths[item.path])  # stable, so a file stays in one piece and in order
    for item in items:
        if item.get_closest_marker("release") and not RELEASE:
            item.add_marker(pytest.mark.skip(reason="only with RELEASE=1"))


def pytest_terminal_summary(terminalreporter):
    """What was drawn in this run can be drawn again."""
    terminalreporter.write_line(f"TEST_SEED={os.environ['TEST_SEED']}")


@pytest.fixture(scope="module")
def one_thread():
    """Quiet logs, and torch with one thread, as a child that is forked has none of its parent's others."""
    import torch

    from helpers import env

    env.quiet()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
