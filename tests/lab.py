"""Drive JupyterLab in a real Chromium, as a reader would use it. The browser is found or missed with a clear reason."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
]
NOT_COPIED = (".git", ".venv", ".build", ".hypothesis", ".ruff_cache", "__pycache__", "runs", "work")
SETTINGS = {  # nothing that pops up, nothing that saves by itself, every cell in the page also when scrolled away
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
NOTEBOOK = "window.jupyterapp.shell.currentWidget"


def missing():
    """Why there can be no browser test here, or None."""
    if not Path(CHROMIUM).exists():
        return f"no Chromium at {CHROMIUM}: install Debian's chromium, or set CHROMIUM to yours"
    return None if shutil.which("make") else "no make"


def copy_of_repository(folder):
    """A copy in which a browser may write what it likes."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return folder


@contextmanager
def make_lab(folder, work, seconds=90):
    """Run `make lab` in a copy of the repository, with the Python of this process; yields the address that it prints.

    What a reader has configured for Jupyter is kept out, and what Jupyter writes goes to `work`.
    """
    settings = work / "config" / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS))
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    for kind in ("CONFIG", "DATA", "RUNTIME"):
        environment[f"JUPYTER_{kind}_DIR"] = str(work / kind.lower())
    for kind in ("SETTINGS", "WORKSPACES"):
        environment[f"JUPYTERLAB_{kind}_DIR"] = str(work / kind.lower())
    environment |= {"IPYTHONDIR": str(work / "ipython"), "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    environment["HELPERS_RUNS"] = str(work / "runs")  # what a test trains is its own
    options = f"--no-browser --port={free_port()} --LabApp.expose_app_in_browser=True"
    command = ["make", "-o", ".venv/ready", "lab", f"BIN={Path(sys.executable).parent}", f"LAB_OPTIONS={options}"]
    log = work / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            yield printed_address(server, log, seconds)
        finally:
            stop(server)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def printed_address(server, log, seconds):
    """The address with its token, once the server has printed it."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"http://127\.0\.0\.1:\d+/\S*token=\w+", log.read_text()):
            return found[0]
        time.sleep(0.2)
    raise RuntimeError(f"make lab printed no address:\n{log.read_text()}")


def stop(server, seconds=20):
    """End the server's process group: on SIGTERM, Jupyter ends its kernels."""
    deadline = time.monotonic() + seconds
    try:
        os.killpg(server.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            server.poll()  # takes note of make's own end, so that an empty group is seen as empty
            os.killpg(server.pid, 0)
            time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    server.wait()


class Lab:
    """JupyterLab in a page of Playwright's; all waiting is for its own state, never for a time."""

    def __init__(self, page):
        self.page = page

    def open(self, address, seconds=60):
        """Go to an address; back when the notebook in it, not the last one, is shown and its kernel idle."""
        self.page.goto(address)
        file = re.search(r"/lab/tree/([^?]*)", address)[1]
        self.wait("window.jupyterapp && window.jupyterapp.shell", seconds)
        self.page.evaluate("async () => { await window.jupyterapp.restored }")
        self.wait(f"{NOTEBOOK}?.context?.path === {json.dumps(file)}", seconds)
        self.wait(f"{NOTEBOOK}.context.isReady && {NOTEBOOK}.content.widgets.length", seconds)
        self.wait(f"{NOTEBOOK}.sessionContext.session?.kernel?.status === 'idle'", seconds)

    def run_all(self, seconds=240):
        """Clear the saved outputs and run every cell; back at the end of the last cell or at the first error."""
        self.page.evaluate(
            """async () => {
                const commands = window.jupyterapp.commands;
                await commands.execute("notebook:clear-all-cell-outputs");
                window.ran = null;
                commands.execute("notebook:run-all-cells").finally(() => { window.ran = true; });
            }"""
        )
        self.wait(f"window.ran && {NOTEBOOK}.sessionContext.session.kernel.status === 'idle'", seconds)

    def run_new(self, source):
        """Add a cell at the end and run it; back with its text outputs when it is done."""
        outputs = self.page.evaluate(
            f"""async source => {{
                const commands = window.jupyterapp.commands, content = {NOTEBOOK}.content;
                content.activeCellIndex = content.widgets.length - 1;
                await commands.execute("notebook:insert-cell-below");
                content.activeCell.model.sharedModel.setSource(source);
                const cell = content.activeCell;
                await commands.execute("notebook:run-cell");
                return cell.model.outputs.toJSON();
            }}""",
            source,
        )
        texts = [o.get("text") or o.get("evalue") or o.get("data", {}).get("text/plain", "") for o in outputs]
        return "".join(texts)

    def restart(self, seconds=60):
        """Restart the kernel, as one that was killed is."""
        self.page.evaluate(f"async () => {{ await {NOTEBOOK}.sessionContext.session.kernel.restart() }}")
        self.wait(f"{NOTEBOOK}.sessionContext.session?.kernel?.status === 'idle'", seconds)

    def wait(self, condition, seconds):
        self.page.wait_for_function(f"() => Boolean({condition})", timeout=1000 * seconds)

    def path(self):
        """The notebook in front."""
        return self.page.evaluate(f"() => {NOTEBOOK}.context.path")

    def code_cells(self):
        """Source, execution count and outputs of each code cell that is not empty, as they are in the page."""
        return self.page.evaluate(
            f"""() => {NOTEBOOK}.content.widgets.map(cell => cell.model)
                .filter(model => model.type === "code" && model.sharedModel.getSource().trim())
                .map(model => ({{
                    source: model.sharedModel.getSource(),
                    count: model.executionCount,
                    outputs: model.outputs.toJSON(),
                }}))"""
        )

    def screenshot(self, file, whole=False):
        """Save what is seen; with `whole`, of a window as tall as the notebook."""
        size = self.page.viewport_size
        if whole:
            parts = f"[...{NOTEBOOK}.node.querySelectorAll('.jp-Notebook, .jp-WindowedPanel-outer')]"
            height = self.page.evaluate(f"() => Math.max(...{parts}.map(part => part.scrollHeight))")
            self.page.set_viewport_size({"width": size["width"], "height": min(height + 200, 16_000)})
            self.page.evaluate(f"() => {parts}.forEach(part => part.scrollTo(0, 0))")
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=file)
        self.page.set_viewport_size(size)
