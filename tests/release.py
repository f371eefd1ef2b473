"""`make release`: everything that there is to test, in stages, and what came of it as data/results/release.json.

    python tests/release.py            # the stages that have not passed yet for this commit, then release.json
    python tests/release.py sweeps     # this stage, and no other
    python tests/release.py --again    # all stages, also those that have passed

With RELEASE=1 the tests run all combinations, all sweeps and whole notebooks in the browser, which takes hours. A stage
leaves its result and its log in .build/release/ when it ends, so a run that is broken off goes on with the next stage.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import nbformat

from helpers import env
from notebooks import NOTEBOOKS, code_digest

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "data" / "results" / "release.json"
FOLDER = ROOT / ".build" / "release"
TESTS = {path.name for path in (ROOT / "tests").glob("test_*.py")}
ALONE = {  # the stages of the longest files
    "sweeps": {"test_sweeps.py"},
    "browser": {"test_browser.py"},
    "projects": {"test_new_runs.py", "test_new_families.py"},
    "take-home": {"test_take_home.py", "test_distributed.py"},
}
PYTEST = ["-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=8"]
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "--timeout=900"]
OF_NO_STAGE = {RESULT.relative_to(ROOT).as_posix()}


def stages():
    """The commands of each stage, as arguments of Python; a test file that no stage names is part of `tests`."""
    rest = TESTS.difference(*ALONE.values())
    benches = sorted(path.name for path in (ROOT / "tests").glob("bench*.py"))
    found = {"style": [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."]]}
    for name, files in {"tests": rest, **ALONE}.items():
        present = [f"tests/{file}" for file in sorted(files & TESTS)]
        found[name] = [[*PYTEST, *present, *(["helpers"] if name == "tests" else [])]]
    found["notebooks"] = [["tests/notebooks.py", "with-solutions", ".build"], [*PYTEST, *NBVAL, ".build"]]
    found["published"] = [["data/recipes/published.py", "--again"]]
    return found | {"benchmarks": [[f"tests/{bench}"] for bench in benches]}


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.rstrip()


def commit_of_a_clean_checkout():
    """The commit that is tested; a release is of one, so nothing may have been changed since."""
    changed = [line[3:] for line in git("status", "--porcelain").splitlines() if line[3:] not in OF_NO_STAGE]
    if changed:
        sys.exit(
            f"a release is of a commit, and these files are not as in it: {', '.join(changed)}. Commit them first."
        )
    return git("rev-parse", "HEAD")


def counts(report):
    """Tests that passed, failed and were skipped, from the XML that pytest writes."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite")) if report.exists() else []
    total, errors, failures, skipped = (
        sum(int(suite.get(key)) for suite in suites) for key in ("tests", "errors", "failures", "skipped")
    )
    return {"passed": total - errors - failures - skipped, "failed": errors + failures, "skipped": skipped}


def run(name, commands, folder=FOLDER):
    """Run a stage to its end, also when a part of it fails; its result: what passed, and seconds by clock and of cores.

    A command that is not pytest counts as one test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report, total = folder / f"{name}.xml", {"passed": 0, "failed": 0, "skipped": 0}
    environment = os.environ | {"RELEASE": "1", "REQUIRE_BROWSER": "1", "OMP_NUM_THREADS": "1"}
    started, cpu = time.monotonic(), cpu_s()
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        for command in commands:
            report.unlink(missing_ok=True)
            more = [f"--junitxml={report}"] if "pytest" in command else []
            done = subprocess.run([sys.executable, *command, *more], cwd=ROOT, env=environment, stdout=log, stderr=log)
            found = counts(report) if more else {"passed": int(done.returncode == 0), "failed": 0, "skipped": 0}
            if done.returncode and not found["failed"]:  # it failed as a whole, such as an error before any test
                found["failed"] = 1
            total = {key: total[key] + found[key] for key in total}
    return total | {"seconds": round(time.monotonic() - started), "cpu_s": round(cpu_s() - cpu)}


def cpu_s():
    """Seconds that all children which have ended took of all cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def digests():
    """The digest of the code of each notebook."""
    return {
        path.stem: code_digest(nbformat.read(path, as_version=4)) for path in sorted(NOTEBOOKS.rglob("[0-9]*.ipynb"))
    }


def release(commit, parts):
    """What release.json holds."""
    total = {key: sum(part[key] for part in parts.values()) for key in ("passed", "failed", "skipped")}
    about = {"machine": env.machine(), "versions": env.versions(), "notebooks": digests()}
    return {"commit": commit, **total, "parts": parts, **about}


def main(arguments=None):
    everything = stages()
    parser = argparse.ArgumentParser(
        prog="python tests/release.py", description="Run everything that there is to test."
    )
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(everything)}; left out: all that have not passed")
    parser.add_argument("--again", action="store_true", help="also those that have passed for this commit")
    given = parser.parse_args(arguments)
    if unknown := set(given.stages) - set(everything):
        parser.error(f"no stage {', '.join(sorted(unknown))}: there are {', '.join(everything)}")
    commit = commit_of_a_clean_checkout()
    folder = FOLDER / commit[:12]
    if given.again:
        shutil.rmtree(folder, ignore_errors=True)
    for name in given.stages or everything:
        result = folder / f"{name}.json"
        if result.exists() and name not in given.stages:
            print(f"{name}: has passed, {result.relative_to(ROOT)}", flush=True)
            continue
        print(f"{name}: runs, see {(folder / name).relative_to(ROOT)}.log", flush=True)
        found = run(name, everything[name], folder)
        print(f"{name}: {found}", flush=True)
        result.unlink(missing_ok=True)
        if not found["failed"]:
            result.write_text(json.dumps(found))
    parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in everything if passed(folder, name)}
    if missing := [name for name in everything if name not in parts]:
        sys.exit(f"no release yet: {', '.join(missing)} have not passed. The logs are in {folder.relative_to(ROOT)}.")
    RESULT.write_text(json.dumps(release(commit, parts), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULT.relative_to(ROOT)}: commit it", flush=True)


def passed(folder, name):
    return (folder / f"{name}.json").exists()


if __name__ == "__main__":
    main()
