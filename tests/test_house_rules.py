"""The house rules, as tests: what `helpers` may import and wrap, how a notebook is built, what its saved outputs hold.

A rule for notebooks is a function that takes a notebook and returns its problems as a list of sentences. Below the
rules, a small sample that keeps them all is broken in ways that each rule must catch.
"""

import ast
import csv
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from notebooks import NOTEBOOKS, code_cells, solution_code, source_digest, tagged

ROOT = Path(__file__).resolve().parents[1]

# ---- helpers -------------------------------------------------------------------------------------------------------

ARROWS = {  # module: what it may import from helpers
    "env": set(),
    "data": set(),
    "metrics": set(),
    "memory": set(),
    "record": set(),
    "plots": set(),
    "generate": {"record"},
    "adapters": set(),
    "checks": set(),
    "preflight": {"memory"},
    "widgets": {"env", "generate", "memory", "plots", "record"},
    "new": {"data", "env", "memory", "record"},
}
NO_TORCH = (
    "adapters",
    "checks",
    "env",
    "data",
    "generate",
    "metrics",
    "new",
    "preflight",
    "record",
    "plots",
)  # their import brings no torch
OPEN_ONLY = {  # the subject of the notebooks: written there in the open, never called or subclassed here
    "BitsAndBytesConfig",
    "LoraConfig",
    "Seq2SeqTrainer",
    "Seq2SeqTrainingArguments",
    "Trainer",
    "TrainingArguments",
    "from_pretrained",
    "get_peft_model",
}
MODULES = {path.stem: path.read_text() for path in sorted((ROOT / "helpers").glob("*.py")) if path.stem != "__init__"}


def arrows(source):
    """Modules of helpers that a source imports, anywhere in it and in any form."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("helpers.")}
        elif isinstance(node, ast.ImportFrom):
            module = f"helpers.{node.module or ''}".rstrip(".") if node.level else node.module
            if module == "helpers":
                found |= {name.name for name in node.names}
            elif module.startswith("helpers."):
                found.add(module.split(".")[1])
    return found


def star_imports(source):
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [f"line {node.lineno}: from {node.module} import *" for node in nodes if node.names[0].name == "*"]


def last_name(node):
    """`Trainer` of both `Trainer` and `transformers.Trainer`."""
    return getattr(node, "attr", getattr(node, "id", ""))


def wrapped(source):
    """Calls and subclasses of what a notebook writes in the open."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        used = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
        problems += [f"line {node.lineno}: {last_name(one)}" for one in used if last_name(one) in OPEN_ONLY]
    return problems


def without_example(source):
    """Public functions and classes with no docstring or no example in it; an exception needs the docstring only."""
    problems = []
    for node in ast.parse(source).body:
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if not named or node.name.startswith("_") or node.name == "main":
            continue
        text = ast.get_docstring(node) or ""
        error = isinstance(node, ast.ClassDef) and any(
            last_name(b).endswith(("Error", "Exception")) for b in node.bases
        )
        if not text:
            problems.append(f"{node.name} has no docstring")
        elif ">>>" not in text and not error:
            problems.append(f"{node.name} has no example")
    return problems


def headings(name):
    """The headings of README.md or a notebook, without their marks; none when there is no such notebook."""
    path = ROOT / name
    cells = nbformat.read(path, as_version=4).cells if path.suffix == ".ipynb" and path.exists() else []
    lines = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    lines += path.read_text(encoding="utf-8").splitlines() if name == "README.md" else []
    return {line.lstrip("# ") for line in lines if line.startswith("#")}


def taught_nowhere(source):
    """Docstrings that name a notebook or a heading that is not there."""
    taught = re.findall(r'Taught in (notebooks/\S+|README\.md), "([^"]+)"', source)
    return [f"{name} has no heading {heading!r}" for name, heading in taught if heading not in headings(name)]


@pytest.mark.parametrize("module", MODULES)
def test_a_helpers_module_imports_only_what_the_table_allows(module):
    assert module in ARROWS, f"helpers/{module}.py is not in the table of modules"
    assert arrows(MODULES[module]) <= ARROWS[module]


def test_helpers_have_no_cycle():
    list(TopologicalSorter({module: arrows(source) for module, source in MODULES.items()}).static_order())


def test_the_package_itself_only_documents():
    body = ast.parse((ROOT / "helpers" / "__init__.py").read_text()).body
    assert [type(node) for node in body] == [ast.Expr]


@pytest.mark.parametrize("rule", [star_imports, wrapped, without_example, taught_nowhere])
@pytest.mark.parametrize("module", MODULES)
def test_a_helpers_module_keeps(module, rule):
    problems = rule(MODULES[module])
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("source", ["import torch", "from transformers import AutoModel"])
def test_the_arrows_leave_other_packages_out(source):
    assert arrows(source) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import helpers.plots",
        "from helpers import plots",
        "from helpers.plots import bars",
        "from . import plots",
        "from .plots import bars",
        "def late():\n    from helpers import plots",
    ],
)
def test_an_arrow_is_seen_in_every_form(source):
    assert arrows(source) == {"plots"}


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (star_imports, "from numpy import *"),
        (wrapped, "def fit():\n    return transformers.Trainer(model)"),
        (wrapped, "class Mine(Trainer): pass"),
        (wrapped, "def load(name):\n    return AutoModel.from_pretrained(name)"),
        (without_example, "def bare(): pass"),
        (without_example, 'def told():\n    """No example."""'),
        (without_example, 'class Told:\n    """No example."""'),
        (without_example, "class Silent(ValueError): pass"),
        (taught_nowhere, 'Taught in notebooks/00_start_here.ipynb, "A heading that is not there".'),
        (taught_nowhere, 'Taught in notebooks/99_nowhere.ipynb, "One dial".'),
        (taught_nowhere, 'Taught in README.md, "A heading that is not there".'),
    ],
)
def test_a_broken_helpers_module_is_caught(rule, source):
    assert len(rule(source)) == 1


def test_importing_helpers_does_not_import_torch():
    modules = [name for name in NO_TORCH if name in MODULES]
    code = "import sys"
    for module in modules:
        code += f"\nimport helpers.{module}\nif 'torch' in sys.modules: sys.exit('helpers.{module} imports torch')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- Rules for every notebook: the source --------------------------------------------------------------------------


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def numbered(notebook):
    """(number in the notebook, cell) of each code cell that is not empty."""
    return [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]


def long_cells(notebook):
    """A code cell has at most 30 lines; the take-home cell has its own rule."""
    home = tagged(notebook, "take-home")
    lengths = [(i, len(code_lines(cell))) for i, cell in numbered(notebook) if i not in home]
    return [f"cell {i}: {length} lines of code, at most 30" for i, length in lengths if length > 30]


def long_median(notebook):
    median = statistics.median(len(code_lines(cell)) for cell in code_cells(notebook))
    return [f"the median code cell has {median} lines, at most 5"] if median > 5 else []


def setup_cell(notebook):
    """The first code cell sets the one dial."""
    cell = code_cells(notebook)[0]
    problems = []
    if len(code_lines(cell)) > 12:
        problems.append(f"the setup cell has {len(code_lines(cell))} lines, at most 12")
    if not re.search(r"^MODEL = ", cell.source, re.MULTILINE):
        problems.append("the setup cell has no line MODEL = ...")
    return problems


def code_in_a_row(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    return [f"cells {i} to {i + 2} are all code" for i in range(len(kinds) - 2) if kinds[i : i + 3] == ["code"] * 3]


def exercise_order(notebook):
    """An exercise is a placeholder, its check and its folded solution, in this order."""
    parts = {i: tag for tag in ("exercise", "check", "solution") for i in tagged(notebook, tag)}
    order = [parts[i] for i in sorted(parts)]
    if order != ["exercise", "check", "solution"] * (len(order) // 3):
        return [f"tags in this order, not exercise, check, solution: {', '.join(order)}"]
    problems = []
    for i, tag in parts.items():
        cell, kind = notebook.cells[i], "markdown" if tag == "solution" else "code"
        if cell.cell_type != kind:
            problems.append(f"cell {i}: {tag} is a {cell.cell_type} cell, not {kind}")
        elif tag == "solution":
            try:
                solution_code(cell)
            except ValueError as error:
                problems.append(f"cell {i}: {error}")
            if "<details>" not in cell.source:
                problems.append(f"cell {i}: the solution is not folded in <details>")
    return problems


def check_cells(notebook):
    """A check is one expression, a call of `checks.`, and nothing before it: the tests put `result = ` in front."""
    problems = []
    for i in tagged(notebook, "check"):
        source = notebook.cells[i].source.strip()
        body = ast.parse(source).body
        if len(body) != 1 or not isinstance(body[0], ast.Expr) or not re.match(r"checks\.\w+\(", source):
            problems.append(f"cell {i}: a check is one expression, checks.name(...)")
    return problems


def checked_by_nbval(notebook):
    count = len([cell for cell in code_cells(notebook) if marked(cell)])
    return [f"{count} cells have # NBVAL_CHECK_OUTPUT, at least 5"] if count < 5 else []


def marked(cell):
    return re.search(r"^\s*#\s*NBVAL_CHECK_OUTPUT\s*$", cell.source, re.MULTILINE)


def large_file(notebook):
    size = len(nbformat.writes(notebook).encode())
    return [f"{size / 1000:.0f} kB, at most 500"] if size > 500_000 else []


# ---- Rules for every notebook: the saved outputs -------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users)/|\b[A-Z]:\\")


def outputs(notebook):
    """(number of the cell, output) of every saved output."""
    return [(i, output) for i, cell in numbered(notebook) for output in cell.outputs]


def texts(output):
    """What an output shows as text; pictures in base64 are left out, as chance may spell anything in them."""
    shown = {"text": output.get("text", ""), **output.get("data", {}), "error": output.get("traceback", "")}
    pictures = ("image/png", "image/jpeg", "image/gif", "application/pdf")
    return [
        value if isinstance(value, str) else json.dumps(value) for kind, value in shown.items() if kind not in pictures
    ]


def run_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return (
        [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}, not 1 to {len(counts)}"]
    )


def saved_errors(notebook):
    return [f"cell {i}: {output.ename}" for i, output in outputs(notebook) if output.output_type == "error"]


def saved_stderr(notebook):
    return [
        f"cell {i}: {output.text[:80]!r} on stderr" for i, output in outputs(notebook) if output.get("name") == "stderr"
    ]


def saved_warnings(notebook):
    return [
        f"cell {i}: a warning" for i, output in outputs(notebook) if any("Warning" in text for text in texts(output))
    ]


def machine_paths(notebook):
    return [
        f"cell {i}: a path of a machine, {text[max(0, found.start() - 10) : found.end() + 20]!r}"
        for i, output in outputs(notebook)
        for text in texts(output)
        for found in MACHINE_PATH.finditer(text)
    ]


def stale_outputs(notebook):
    fresh = notebook.metadata.get("source_digest") == source_digest(notebook)
    return [] if fresh else ["the outputs are not of these sources: run make notebooks"]


def missing_outputs(notebook):
    """What nbval compares and what a check says must be there to be seen."""
    wanted = [(i, cell) for i, cell in numbered(notebook) if marked(cell) or i in tagged(notebook, "check")]
    return [f"cell {i}: no saved output" for i, cell in wanted if not cell.outputs]


# ---- Rules for the lessons, the notebooks numbered 01 and higher ---------------------------------------------------


def three_exercises(notebook):
    count = len(tagged(notebook, "exercise"))
    return [] if count == 3 else [f"{count} exercises, not 3"]


def take_home(notebook):
    """One plain cell of at most 45 lines that stands alone."""
    cells = [notebook.cells[i] for i in tagged(notebook, "take-home")]
    if [cell.cell_type for cell in cells] != ["code"]:
        return [f"{len(cells)} cells have the tag take-home, not 1 code cell"]
    problems = []
    if len(code_lines(cells[0])) > 45:
        problems.append(f"the take-home cell has {len(code_lines(cells[0]))} lines, at most 45")
    if re.search(r"^\s*(import|from) helpers\b", cells[0].source, re.MULTILINE):
        problems.append("the take-home cell imports helpers")
    return problems


RULES = [
    long_cells,
    long_median,
    setup_cell,
    code_in_a_row,
    exercise_order,
    check_cells,
    checked_by_nbval,
    large_file,
    run_in_order,
    saved_errors,
    saved_stderr,
    saved_warnings,
    machine_paths,
    stale_outputs,
    missing_outputs,
]
LESSON_RULES = [three_exercises, take_home]
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
LESSONS = [path for path in PATHS if not path.name.startswith("00")]


def name(value):
    """A readable test id for a path or a rule."""
    return getattr(value, "stem", getattr(value, "__name__", None))


def test_there_are_notebooks():
    assert PATHS


@pytest.mark.parametrize("rule", RULES, ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_every_notebook_keeps(path, rule):
    problems = rule(nbformat.read(path, as_version=4))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("rule", LESSON_RULES, ids=name)
@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_every_lesson_keeps(path, rule):
    problems = rule(nbformat.read(path, as_version=4))
    assert not problems, "\n".join(problems)


# ---- The rules themselves, on samples that are broken on purpose ---------------------------------------------------


def sample(lesson=True):
    """A small notebook that keeps every rule: an opening one, or a lesson with exercises and a take-home cell."""

    def code(source, tag=None):
        cell = new_code_cell(source, metadata={"tags": [tag] if tag else []})
        cell.outputs = [new_output("stream", name="stdout", text="seen\n")]
        return cell

    cells = [new_markdown_cell("# A question?"), code('MODEL = "tiny-encoder"')]
    for number in range(5):
        cells += [new_markdown_cell("One idea."), code(f"# NBVAL_CHECK_OUTPUT\nprint({number})")]
    for _ in range(3 if lesson else 0):
        solution = "<details><summary>Solution</summary>\n\n```python\nguess = 1\n```\n</details>"
        cells += [new_markdown_cell("Try it."), code("guess = ...", "exercise"), code("checks.guess(guess)", "check")]
        cells.append(new_markdown_cell(solution, metadata={"tags": ["solution"]}))
    if lesson:
        cells.append(code('FILE = "mine.csv"\nMODEL = "tiny-encoder"\nOUT = "saved"', "take-home"))
    notebook = new_notebook(cells=cells)
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = number
    notebook.metadata.source_digest = source_digest(notebook)
    return notebook


def put(tag, source):
    """Break a sample: other source in the first cell with a tag (a number counts all cells)."""

    def breaks(notebook):
        notebook.cells[tag if isinstance(tag, int) else tagged(notebook, tag)[0]].source = source

    return breaks


def show(output_type, **content):
    """Break a sample: one more saved output."""
    return lambda notebook: code_cells(notebook)[1].outputs.append(new_output(output_type, **content))


def drop(tag):
    return lambda notebook: notebook.cells.pop(tagged(notebook, tag)[0])


def swap_exercise_and_check(notebook):
    i = tagged(notebook, "exercise")[0]
    notebook.cells[i], notebook.cells[i + 1] = notebook.cells[i + 1], notebook.cells[i]


def all_long(notebook):
    for cell in code_cells(notebook):
        cell.source += "\nprint(1)" * 5


def run_twice(notebook):
    code_cells(notebook)[3].execution_count = 40


def outputs_gone(notebook):
    for cell in code_cells(notebook):
        cell.outputs = []


BROKEN = [
    (long_cells, put(3, "print(1)\n" * 31)),
    (long_median, all_long),
    (setup_cell, put(1, 'MODEL = "tiny-encoder"\n' + "import os\n" * 12)),
    (setup_cell, put(1, "import os")),
    (code_in_a_row, lambda notebook: notebook.cells.pop(tagged(notebook, "exercise")[0] - 1)),
    (exercise_order, drop("check")),
    (exercise_order, drop("solution")),
    (exercise_order, swap_exercise_and_check),
    (exercise_order, put("solution", "<details>No code.</details>")),
    (exercise_order, put("solution", "```python\nguess = 1\n```")),
    (check_cells, put("check", "result = checks.guess(guess)")),
    (check_cells, put("check", "checks.guess(guess)\nprint(1)")),
    (check_cells, put("check", "# Is it right?\nchecks.guess(guess)")),
    (check_cells, put("check", "print(guess)")),
    (checked_by_nbval, put(3, "print(1)")),
    (large_file, show("display_data", data={"image/png": "A" * 500_000})),
    (run_in_order, run_twice),
    (saved_errors, show("error", ename="ValueError", evalue="no", traceback=[])),
    (saved_stderr, show("stream", name="stderr", text="Loading\n")),
    (saved_warnings, show("stream", name="stdout", text="FutureWarning: soon\n")),
    (saved_warnings, show("display_data", data={"text/html": "<b>UserWarning</b>"})),
    (machine_paths, show("stream", name="stdout", text="saved to /home/ann/runs\n")),
    (machine_paths, show("execute_result", data={"text/plain": "PosixPath('/Users/ann/x')"})),
    (machine_paths, show("execute_result", data={"text/plain": r"WindowsPath('C:\ann')"})),
    (machine_paths, show("display_data", data={"application/json": {"file": "/tmp/" + "x"}})),
    (stale_outputs, put(3, "# NBVAL_CHECK_OUTPUT\nprint('changed')")),
    (missing_outputs, outputs_gone),
    (three_exercises, lambda notebook: notebook.cells.append(new_code_cell(metadata={"tags": ["exercise"]}))),
    (take_home, drop("take-home")),
    (take_home, put("take-home", "print(1)\n" * 46)),
    (take_home, put("take-home", "def load():\n    from helpers import data")),
]


@pytest.mark.parametrize("lesson", [False, True], ids=["opening", "lesson"])
def test_the_sample_keeps_every_rule(lesson):
    notebook = sample(lesson)
    nbformat.validate(notebook)
    assert [problem for rule in RULES + LESSON_RULES * lesson for problem in rule(notebook)] == []


@pytest.mark.parametrize(("rule", "breaks"), BROKEN, ids=[rule.__name__ for rule, _ in BROKEN])
def test_a_broken_notebook_is_caught(rule, breaks):
    notebook = sample()
    breaks(notebook)
    assert rule(notebook) != []


def test_every_rule_was_seen_to_catch_something():
    assert {rule for rule, _ in BROKEN} == set(RULES + LESSON_RULES)


@pytest.mark.parametrize(
    "text", ["data/work/x", "./tmp/x", "https://example.org/home/x", "and/or", "Answer:\n no", "GiB/s"]
)
def test_what_is_no_path_of_a_machine_passes(text):
    assert not MACHINE_PATH.search(text)


# ---- Committed files -----------------------------------------------------------------------------------------------

FORBIDDEN = re.compile(
    r"(?<![\w.*})])/(?:work|root)/|pypi\.org|download\.pytorch\.org|https?://[^/\s]*(?:pypi|simple)", re.IGNORECASE
)


def committed_files():
    """Files that git has or would add: what a reader gets."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a clone: it looks at the files that git would commit")
    return [ROOT / path for path in done.stdout.split("\0") if path and (ROOT / path).is_file()]


def test_no_committed_file_names_an_index_or_a_machine():
    problems = []
    for path in committed_files():
        if path.stat().st_size > 1_000_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        for number, line in enumerate(text.splitlines(), start=1):
            if found := FORBIDDEN.search(line):
                problems.append(f"{path.relative_to(ROOT)}, line {number}: {found[0]}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "parts",
    [
        ("cd /wo", "rk/main"),
        ("'/ro", "ot/.cache'"),
        ("https://py", "pi.org/project/x"),
        ("--index-url https://download.py", "torch.org/whl/cpu"),
        ("http://mirror.example:8080/x https://py", "pi.example/x"),
        ("https://sim", "ple.example/x"),
    ],
)
def test_a_forbidden_address_is_caught(parts):
    assert FORBIDDEN.search("".join(parts))


@pytest.mark.parametrize("text", ["data/models/*/work/", "homework/1", "a simple rule", "https://example.org/simple/"])
def test_what_is_no_forbidden_address_passes(text):
    assert not FORBIDDEN.search(text)


# ---- Take it with you ----------------------------------------------------------------------------------------------
# A take-home cell begins with settings, one assignment a line. The test gives them other values and runs the cell in a
# fresh Python, in an empty folder, with no network and no `helpers`.

PLAIN = [
    "the",
    "box",
    "came",
    "on",
    "monday",
    "and",
    "i",
    "put",
    "it",
    "next",
    "to",
    "my",
    "old",
    "one",
    "before",
    "lunch",
]
CUES = {
    "spam": ["winner", "prize", "free", "cash", "claim", "click"],
    "ham": ["meeting", "tomorrow", "thanks", "report", "call", "train"],
    "bad": ["awful", "broken", "poor", "terrible", "useless"],
    "middling": ["okay", "average", "acceptable", "ordinary", "fair"],
    "good": ["great", "excellent", "perfect", "wonderful", "love"],
}


def text_about(kind, words, draw):
    """A text of so many words with a few that give its kind away, near its beginning."""
    start = draw.choices(PLAIN, k=6) + draw.choices(CUES[kind], k=3)
    draw.shuffle(start)
    return " ".join(start + draw.choices(PLAIN, k=words - len(start)))


def messages(path, draw):
    """Two text labels and other column names."""
    rows = [(kind, text_about(kind, draw.randint(9, 25), draw)) for kind in draw.choices(["spam", "ham"], k=500)]
    write_csv(path, ["kind", "message"], rows)
    return {"TEXT": "message", "LABEL": "kind"}, [kind for kind, _ in rows]


def long_reviews(path, draw):
    """A few thousand rows, one text in a hundred longer than the model takes, and numbers as labels."""
    rows = []
    for number in range(3000):
        stars = draw.randrange(3)
        words = draw.randint(600, 900) if number % 100 == 0 else draw.randint(10, 20)
        rows.append((text_about(["bad", "middling", "good"][stars], words, draw), stars))
    write_csv(path, ["body", "stars"], rows)
    return {"TEXT": "body", "LABEL": "stars"}, [str(stars) for _, stars in rows]


def exported_table(path, draw):
    """Label first, columns that nobody asked for, quotes, commas and line ends in the texts, a byte order mark."""
    rows = []
    for number in range(500):
        kind = draw.choice(["bad", "good"])
        words = text_about(kind, draw.randint(12, 30), draw).split()
        text = f'"{" ".join(words[:5])}",\n{" ".join(words[5:])}\n'
        rows.append((kind.upper(), f"2026-01-{number % 28 + 1:02d}", text, "", number))
    write_csv(path, ["Verdict", "date", "Customer comment", "reply", "id"], rows, encoding="utf-8-sig")
    return {"TEXT": "Customer comment", "LABEL": "Verdict"}, [row[0] for row in rows]


def json_lines(path, draw):
    """JSON, one object a line, with fields that nobody asked for."""
    rows = [
        (number, kind, text_about(kind, draw.randint(9, 25), draw)) for number, kind in enumerate(["spam", "ham"] * 250)
    ]
    lines = [json.dumps({"id": number, "kind": kind, "message": text}) for number, kind, text in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"TEXT": "message", "LABEL": "kind"}, [kind for _, kind, _ in rows]


def write_csv(path, header, rows, encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])


def instructions(path, draw):
    """JSONL with `instruction`, `output` and an `input` that is sometimes empty; one row is far too long."""
    with path.open("w", encoding="utf-8") as file:
        for number, (asked, about, said) in enumerate(said_about(draw, 300)):
            row = {"instruction": asked, "input": about if number % 2 else "", "output": said}
            if not number % 2:
                row["instruction"] = f"{about} {asked}"
            if number == 7:
                row["input"] = "la " * 2000
            file.write(json.dumps(row) + "\n")
    return {}


def conversations(path, draw):
    """A JSON list of `messages`, half with a system message, all with other columns beside."""
    rows = []
    for number, (asked, about, said) in enumerate(said_about(draw, 300)):
        talk = [{"role": "system", "content": "You are brief."}] if number % 2 else []
        talk += [{"role": "user", "content": f"{about} {asked}"}, {"role": "assistant", "content": said}]
        rows.append({"id": number, "messages": talk, "source": "mine"})
    path.write_text(json.dumps(rows), encoding="utf-8")
    return {}


def said_about(draw, count):
    """What is asked, the text that it is about, and the right answer, which depends on the text."""
    for _ in range(count):
        kind = draw.choice(["bad", "good"])
        yield "Verdict?", text_about(kind, draw.randint(9, 14), draw), "Send it back" if kind == "bad" else "Keep it"


TAKE_HOME = {  # notebook: the files its cell must take
    "01_classification": [messages, long_reviews, exported_table],
    "03_full_fine_tuning": [messages, exported_table],
    "04_lora": [messages, exported_table, json_lines],
    "09_beyond_one_machine": [json_lines],  # and one of two processes in test_distributed
}
WRITERS = {  # the same for models that write
    "02_generation": [instructions, conversations],
    "05_qlora": [instructions, conversations],
}
OWN_TESTS = {"06_multi_adapter", "07_domain_adaptation", "08_break_it"}  # the last one's is in test_preflight.py
CASES = [(path, write) for path in LESSONS for write in TAKE_HOME.get(path.stem, [])]
WRITER_CASES = [(path, write) for path in LESSONS for write in WRITERS.get(path.stem, [])]


def with_settings(code, settings):
    """The code with other right-hand sides; a setting that the code does not have is an error."""
    for setting, value in settings.items():
        code, count = re.subn(rf"(?m)^{setting} = .*$", lambda _, line=f"{setting} = {value!r}": line, code, count=1)
        assert count, f"the take-home cell has no line {setting} = ..."
    return code


def run_alone(code, folder, timeout=400):
    """Run code in a fresh Python with `helpers` made unimportable; returns what it printed."""
    script = folder / "take_home.py"
    script.write_text('import sys\n\nsys.modules["helpers"] = None\n' + code, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    environment |= {"OMP_NUM_THREADS": "1"}  # two threads on cores that others use too were six times slower than one
    command = [sys.executable, script.name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def printed_accuracy(text):
    """The last accuracy that was printed, as a share."""
    found = re.findall(r"accuracy\D{0,40}?(\d+(?:\.\d+)?)\s*(%?)", text, re.IGNORECASE)
    assert found, f"no accuracy was printed: {text[-500:]!r}"
    number, percent = found[-1]
    return float(number) / (100 if percent else 1)


def test_every_lesson_has_files_for_its_take_home_cell():
    missing = [path.name for path in LESSONS if path.stem not in {*TAKE_HOME, *WRITERS, *OWN_TESTS}]
    assert not missing, f"write the files that their take-home cells must take: {missing}"


@pytest.mark.slow
@pytest.mark.parametrize(("path", "write"), CASES, ids=name)
def test_the_take_home_cell_runs_alone_on_files_of_other_shapes(path, write, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    file, out = tmp_path / ("mine.jsonl" if write is json_lines else "mine.csv"), tmp_path / "saved"
    settings, labels = write(file, random.Random(7))
    settings |= {"FILE": str(file), "OUT": str(out), "MODEL": str(ROOT / "data" / "models" / "tiny-encoder")}
    before = file.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    printed = run_alone(with_settings(notebook.cells[tagged(notebook, "take-home")[0]].source, settings), tmp_path)

    assert file.read_bytes() == before
    model = AutoModelForSequenceClassification.from_pretrained(out, local_files_only=True)
    assert {str(label) for label in model.config.id2label.values()} == set(labels)
    logits = model(
        **AutoTokenizer.from_pretrained(out, local_files_only=True)("a great box", return_tensors="pt")
    ).logits
    assert logits.shape == (1, len(set(labels)))
    majority = max(labels.count(label) for label in set(labels)) / len(labels)
    assert printed_accuracy(printed) > majority + 0.1, f"no better than the most frequent label:\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize(("path", "write"), WRITER_CASES, ids=name)
def test_the_take_home_cell_of_a_writer_runs_alone_on_files_of_other_shapes(path, write, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file, out = tmp_path / "mine.json", tmp_path / "saved"
    settings = write(file, random.Random(7))
    settings |= {"FILE": str(file), "OUT": str(out), "MODEL": str(ROOT / "data" / "models" / "tiny-decoder")}
    before = file.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    printed = run_alone(with_settings(notebook.cells[tagged(notebook, "take-home")[0]].source, settings), tmp_path)

    assert file.read_bytes() == before
    left_out = int(re.search(r"(\d+) of 300 rows", printed)[1])
    assert left_out == (write is instructions), printed
    assert printed_accuracy(printed) > 0.8, f"two answers, and a text that says which: chance is 0.5\n{printed}"
    AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert AutoTokenizer.from_pretrained(out, local_files_only=True).chat_template


@pytest.mark.slow
def test_the_take_home_cell_of_a_server_answers_by_task_and_leaves_out_what_is_broken(tmp_path):
    folder, file, out = tmp_path / "mine", tmp_path / "asked.jsonl", tmp_path / "out" / "answers.jsonl"
    for name, skill in {"naming": "titles", "sorting": "intent", "cut": "rewrite", "foreign": "rewrite"}.items():
        shutil.copytree(ROOT / "data" / "models" / "adapters" / skill, folder / name)
    weights, config = folder / "cut" / "adapter_model.safetensors", folder / "foreign" / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:50_000])
    config.write_text(config.read_text().replace("tiny-decoder", "other-decoder"))
    (folder / "empty").mkdir()
    review, intents = "I would sum it up as a handy coffee machine. What is its title?", {"delivery", "refund", "login"}
    asked = [("naming", review), ("sorting", "My parcel is late. What is this about?"), ("poems", "Write one.")] * 9
    file.write_text("\n".join(json.dumps({"task": task, "prompt": prompt, "id": 1}) for task, prompt in asked) + "\n\n")
    settings = {"ADAPTERS": str(folder), "FILE": str(file), "OUT": str(out)}
    settings["MODEL"] = str(ROOT / "data" / "models" / "tiny-decoder")
    notebook = nbformat.read(NOTEBOOKS / "06_multi_adapter.ipynb", as_version=4)
    printed = run_alone(with_settings(notebook.cells[tagged(notebook, "take-home")[0]].source, settings), tmp_path)

    assert "18 of 27 requests answered by ['naming', 'sorting']" in printed
    assert all(name in printed for name in ("cut", "empty", "foreign", "other-decoder"))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["task"] for row in rows] == [task for task, _ in asked]
    assert {row["answer"] for row in rows if row["task"] == "naming"} == {"Handy coffee machine"}
    assert {row["answer"] for row in rows if row["task"] == "sorting"} <= intents
    assert not any("answer" in row for row in rows if row["task"] == "poems")


@pytest.mark.slow
def test_the_take_home_cell_of_a_domain_keeps_its_words_whole_and_lowers_the_loss(tmp_path):
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

    draw, file, out = random.Random(7), tmp_path / "mine.txt", tmp_path / "saved"
    texts = [f"Number {n}: the {draw.choice(['box', 'lid'])} is a zwibbel, and so is Quorfy's." for n in range(300)]
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    settings = {"FILE": str(file), "OUT": str(out), "MODEL": str(ROOT / "data" / "models" / "tiny-encoder")}
    notebook = nbformat.read(NOTEBOOKS / "07_domain_adaptation.ipynb", as_version=4)
    printed = run_alone(with_settings(notebook.cells[tagged(notebook, "take-home")[0]].source, settings), tmp_path)

    before, after = map(float, re.search(r"([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after < before, printed
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.tokenize("A zwibbel, Quorfy!") == ["a", "zwibbel", ",", "quorfy", "!"]
    old = AutoModelForMaskedLM.from_pretrained(settings["MODEL"]).get_input_embeddings().weight
    new = AutoModelForMaskedLM.from_pretrained(out, local_files_only=True).get_input_embeddings().weight
    assert len(new) > len(old)
    assert new[: len(old)].equal(old), "only the new words have other vectors"
    AutoModelForSequenceClassification.from_pretrained(out, num_labels=2, local_files_only=True)


def test_the_take_home_runner_has_no_helpers(tmp_path):
    assert run_alone("print('alone')", tmp_path) == "alone\n"
    with pytest.raises(AssertionError, match="helpers"):
        run_alone("from helpers import data", tmp_path)


def test_settings_are_replaced_once_and_only_where_they_are():
    assert with_settings('FILE = "a"  # yours\nread(FILE)', {"FILE": "b\\n.csv"}) == "FILE = 'b\\\\n.csv'\nread(FILE)"
    with pytest.raises(AssertionError, match="no line OUT"):
        with_settings('FILE = "a"', {"OUT": "b"})


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("accuracy 0.91", 0.91),
        ("Test accuracy: 91 %", 0.91),
        ("{'eval_accuracy': 0.5}\naccuracy = 1.0 (300 rows)", 1.0),
    ],
)
def test_an_accuracy_is_read_from_what_was_printed(text, share):
    assert printed_accuracy(text) == share
