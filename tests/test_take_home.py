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
