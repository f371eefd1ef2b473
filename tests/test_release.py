"""The last release ran the notebooks as they are now; the runner of a release counts and resumes as it says."""

import json
import os
import sys

import nbformat
import pytest
import release

from notebooks import code_digest

RELEASED = json.loads(release.RESULT.read_text(encoding="utf-8")) if release.RESULT.exists() else None


def outdated(released, now):
    """Notebooks whose code is not what the release ran."""
    then = released["notebooks"]
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))


@pytest.mark.skipif(RELEASED is None, reason="there was no release yet: make release")
@pytest.mark.skipif(os.environ.get("RELEASE") == "1", reason="a release is being made")
def test_the_release_is_of_these_notebooks():
    assert RELEASED["failed"] == 0
    assert RELEASED["passed"] > 0
    old = outdated(RELEASED, release.digests())
    assert not old, f"the code of {', '.join(old)} is newer than data/results/release.json: run make release"


def test_a_notebook_that_was_changed_added_or_taken_away_is_seen():
    released = {"notebooks": {"a": "1", "b": "2", "c": "3"}}
    assert outdated(released, {"a": "1", "b": "4", "d": "5"}) == ["b", "c", "d"]
    assert outdated(released, released["notebooks"]) == []


def test_prose_does_not_make_a_release_old_and_code_does():
    def digest(prose="Why.", code="x = 1", solution="```python\nx = 2\n```"):
        cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(code)]
        cells.append(nbformat.v4.new_markdown_cell(solution, metadata={"tags": ["solution"]}))
        return code_digest(nbformat.v4.new_notebook(cells=cells))

    assert digest(prose="Because.") == digest()
    assert len({digest(), digest(code="x = 3"), digest(solution="```python\nx = 4\n```")}) == 3


def test_each_test_file_and_benchmark_is_in_one_stage():
    parts = [part for commands in release.stages().values() for command in commands for part in command]
    files = [part.removeprefix("tests/") for part in parts if part.startswith(("tests/test_", "tests/bench"))]
    wanted = {path.name for kind in ("test_*.py", "bench*.py") for path in (release.ROOT / "tests").glob(kind)}
    assert sorted(files) == sorted(wanted)
    assert "helpers" in parts
    assert all(file in release.TESTS for files in release.ALONE.values() for file in files)


def test_a_stage_counts_what_passed_failed_and_was_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "ROOT", tmp_path)
    (tmp_path / "test_one.py").write_text(
        "import os, pytest\n"
        "def test_a(): assert os.environ['RELEASE'] == '1'\n"
        "def test_b(): assert False\n"
        "@pytest.mark.skip\n"
        "def test_c(): pass\n"
    )
    tests = ["-m", "pytest", "-p", "no:cacheprovider", "test_one.py"]
    found = release.run("one", [["-c", ""], tests, ["-c", "import sys; sys.exit(3)"]], tmp_path / "logs")
    assert {key: found[key] for key in ("passed", "failed", "skipped")} == {"passed": 2, "failed": 2, "skipped": 1}
    assert "test_b" in (tmp_path / "logs" / "one.log").read_text()
    broken = release.run("two", [["-m", "pytest", "test_none.py"]], tmp_path / "logs")
    assert broken["failed"] == 1, "a stage in which no test ran has not passed"


def test_a_release_goes_on_where_it_was_broken_off_and_needs_every_stage(tmp_path, monkeypatch, capsys):
    ok, fails = ["-c", ""], ["-c", "import sys; sys.exit(1)"]
    for name, value in {"ROOT": tmp_path, "FOLDER": tmp_path / "logs", "RESULT": tmp_path / "release.json"}.items():
        monkeypatch.setattr(release, name, value)
    monkeypatch.setattr(release, "commit_of_a_clean_checkout", lambda: "a" * 40)
    monkeypatch.setattr(release, "stages", lambda: {"first": [ok], "second": [fails]})
    with pytest.raises(SystemExit, match="no release yet: second have not passed"):
        release.main([])
    assert not release.RESULT.exists()

    monkeypatch.setattr(release, "stages", lambda: {"first": [fails], "second": [ok]})
    capsys.readouterr()
    release.main([])
    assert "first: has passed" in capsys.readouterr().out
    released = json.loads(release.RESULT.read_text())
    assert (released["commit"], released["passed"], released["failed"]) == ("a" * 40, 2, 0)
    assert set(released["parts"]) == {"first", "second"}
    assert released["notebooks"] == release.digests()
    assert released["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))

    with pytest.raises(SystemExit, match="first have not passed"):
        release.main(["--again"])


def test_a_release_of_what_is_not_committed_is_refused(monkeypatch):
    monkeypatch.setattr(release, "git", lambda *arguments: " M helpers/env.py\n M data/results/release.json")
    with pytest.raises(SystemExit, match=r"not as in it: helpers/env\.py\. Commit"):
        release.commit_of_a_clean_checkout()
