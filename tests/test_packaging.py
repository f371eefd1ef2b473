"""What a reader installs: environment.yml, pyproject.toml and constraints.txt agree; make and CI run what they say."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec
from rattler.exceptions import InvalidMatchSpecError

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==([\w.!]+)")  # no index, no address, no local part such as +cpu, no marker


def conda_specs():
    return [spec for spec in ENVIRONMENT["dependencies"] if isinstance(spec, str)]


def pins():
    """Name and version of each line of constraints.txt that is neither empty nor a comment."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = {}
    for line in [line for line in lines if line and not line.startswith("#")]:
        pin = PIN.fullmatch(line)
        assert pin, f"constraints.txt: {line!r} is not name==version"
        found[canonicalize_name(pin[1])] = pin[2]
    return found


def requirements():
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in PROJECT["dependencies"] + extras]


@pytest.mark.parametrize("spec", conda_specs())
def test_conda_can_read_the_environment(spec):
    MatchSpec(spec, strict=True)


def test_a_spec_that_conda_cannot_read_is_caught():
    with pytest.raises(InvalidMatchSpecError):
        MatchSpec("python ==", strict=True)


def test_conda_installs_this_package_with_the_same_pins():
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    assert [part for part in ENVIRONMENT["dependencies"] if isinstance(part, dict)] == [
        {"pip": ["--constraint constraints.txt", "--editable ."]}
    ]
    assert {"python", "pip"} <= {MatchSpec(spec).name.normalized for spec in conda_specs()}


def test_every_place_names_the_same_python():
    wanted = SpecifierSet(PROJECT["requires-python"])
    [conda] = [spec.removeprefix("python").strip() for spec in conda_specs() if spec.startswith("python")]
    assert SpecifierSet(conda) == wanted
    checked = re.search(r"sys\.version_info < \((\d+), (\d+)\)", MAKEFILE).groups()
    assert f">={'.'.join(checked)}" in {str(part) for part in wanted}


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_to_a_version_that_is_allowed(requirement):
    version = pins().get(canonicalize_name(requirement.name))
    assert version, f"constraints.txt has no pin for {requirement.name}: run make constraints"
    assert requirement.specifier.contains(version, prereleases=True)


def test_torch_is_the_version_that_was_measured():
    assert pins()["torch"] == "2.13.0"


@pytest.mark.parametrize(
    "line",
    ["--index-url https://example.org", "torch==2.13.0+cpu", "torch @ file:///torch.whl", "torch>=2.13", "torch"],
)
def test_a_line_that_is_no_pin_is_caught(line):
    assert not PIN.fullmatch(line)


def test_the_readme_installs_with_the_pins():
    text = (ROOT / "README.md").read_text()
    commands = [line for line in text.splitlines() if re.search(r"\bpip install\b", line)]
    assert any(re.search(r"-c(onstraint)? constraints\.txt .*-e(ditable)? ", line) for line in commands), commands
    assert "conda env create -f environment.yml" in text
    assert "make lab" in text
    assert "make test" in text


def test_make_lab_opens_the_first_notebook_on_this_machine_only():
    # -o: the install is not looked at, so nothing is installed and nothing has to be.
    shown = subprocess.run(
        ["make", "-n", "-o", ".venv/ready", "lab"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "/lab/tree/notebooks/00_start_here.ipynb" in shown.stdout
    assert "--ip=127.0.0.1" in shown.stdout
    assert ("--allow-root" in shown.stdout) == (os.geteuid() == 0)
    assert "token" not in shown.stdout  # the one that Jupyter draws stays in force


def test_ci_runs_make_test_with_the_browser_required():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[-1] == "make test"
    assert "export REQUIRE_BROWSER=1" in lines
    subprocess.run(["bash", "-n", script], check=True)
