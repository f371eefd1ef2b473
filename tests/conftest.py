"""What all tests share: no network, one thread, outputs outside of the checkout, and the recipes importable."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HELPERS_RUNS", tempfile.mkdtemp(prefix="runs-"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data" / "recipes"))


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
