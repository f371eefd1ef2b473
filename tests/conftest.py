"""What all tests share: no network, one thread, outputs outside of the checkout, and the recipes importable."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HELPERS_RUNS", tempfile.mkdtemp(prefix="runs-"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data" / "recipes"))
