"""The banks read well, the data is what the recipe writes, the pre-training resumes exactly, the cards are true."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import cards
import domain
import families
import labelled
import numpy as np
import pretrain
import pytest
import torch
from corpus import SENTINELS, Corpus, train_writing_tokenizer
from grammar import BANKS, Grammar, read_bank
from writer import Writer

DATA = Path(__file__).resolve().parents[1] / "data"
BANK_FILES = sorted(BANKS.rglob("*.txt"))
SLOTS = {
    *("full", "surname", "number", "year", "item", "aspect", "adj", "adj2", "cue", "hero", "friend", "thing", "spot"),
    *("PER", "LOC", "ORG", "PERSON", "TOWN"),
}


PARTS = ("train", "validation", "test_same", "test_unseen")


@pytest.fixture(scope="module")
def files():
    return labelled.files()


def texts(name, part):
    ending, columns, _ = cards.FILES[name]
    content = (DATA / name / f"{part}.{ending}").read_text(encoding="utf-8")
    rows = csv.DictReader(content.splitlines()) if ending == "csv" else None
    rows = rows or (json.loads(content) if ending == "json" else map(json.loads, content.splitlines()))
    return [" ".join(cards.contents(row, columns)) for row in rows]


@pytest.mark.parametrize("path", BANK_FILES, ids=lambda path: path.relative_to(BANKS).as_posix())
def test_every_line_of_a_bank_is_well_formed(path):
    known = {*SLOTS, *read_bank(BANKS / "lists.txt"), *read_bank(BANKS / "polarity.txt")}
    for section, entries in read_bank(path).items():
        assert entries, f"{path.name}: section {section} is empty"
        for entry in entries:
            assert entry.count("{") == entry.count("}"), f"{path.name}: {entry}"
            assert set(re.findall(r"<(\w+)>", entry)) <= known, f"{path.name}: {entry}"


def test_no_evaluative_word_has_two_signs():
    lists = read_bank(BANKS / "polarity.txt")
    assert not set(lists["pos"]) & set(lists["neg"]) | set(lists["pos"]) & set(lists["neu"])
    assert not set(lists["neg"]) & set(lists["neu"])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a apple", "An apple."),
        ("a {union|uniform|one-off|European} {thing|}", None),
        ("what is it?", "What is it?"),
        ("it took a hour", "It took an hour."),
    ],
)
def test_the_grammar_writes_articles_capitals_and_stops(template, text):
    found = Grammar(seed=0).sentence(template)
    assert found == text if text else " an " not in f" {found.lower()}"


def test_the_data_is_what_the_recipe_writes(files):
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} differs: run data/recipes/labelled.py"


def test_no_held_out_adjective_is_in_a_labelled_text(files):
    """Computed here from the files alone: the adjectives of the unseen part that are in the lists."""
    adjectives = {word for name in ("pos", "neg", "neu") for word in Writer().lists[name] if " " not in word}
    shown = set(re.findall(r"[a-z'-]+", " ".join(texts("reviews", "train") + texts("reviews", "validation")).lower()))
    unseen = texts("reviews", "test_unseen")
    carried = [adjectives.intersection(re.findall(r"[a-z'-]+", text.lower())) - shown for text in unseen]
    assert all(carried), unseen[carried.index(set())]


def test_the_domain_is_what_its_recipe_writes():
    for path, text in domain.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} differs: run data/recipes/domain.py"


def test_the_held_out_jargon_is_in_no_label_and_often_in_the_unlabelled_text():
    """Computed from the files alone; and no word of the dialect is in any other bank."""
    jargon = read_bank(BANKS / "domain" / "jargon.txt")
    praise, blame = set(jargon["praise"]), set(jargon["blame"])
    polar = praise | blame
    found = {part: [polar & set(labelled.words(text)) for text in texts("domain", part)] for part in PARTS}
    labels = set().union(*found["train"], *found["validation"], *found["test_same"])
    unseen = set().union(*found["test_unseen"])
    for carried in [carried for rows in found.values() for carried in rows]:
        assert carried
        assert carried <= praise or carried <= blame, "adjectives of one sign tell the label"
    assert not labels & unseen
    assert labels | unseen == polar
    written = Counter(labelled.words((DATA / "domain" / "unlabelled.txt").read_text(encoding="utf-8")))
    assert min(written[word] for word in polar) > 40
    others = " ".join(path.read_text(encoding="utf-8") for path in BANK_FILES if path.name != "jargon.txt")
    assert not set(labelled.words(others)) & {word for words in jargon.values() for word in words}


@pytest.mark.parametrize("name", [name for name in cards.FILES if name != "domain"])
def test_no_handwritten_sentence_comes_from_the_generator(name):
    """No handwritten text is in the generated files, nor among five thousand documents of the corpus."""
    generated = {key(text) for part in ("train", "validation", "test_same") for text in texts(name, part)}
    handwritten = {key(text) for part in ("validation", "test") for text in texts(name, f"{part}_handwritten")}
    assert not generated & handwritten
    corpus = " ".join(key(document) for document in Corpus(seed=9).documents(5_000))
    assert not [text for text in handwritten if text in corpus and len(text.split()) > 4]


def runs_of_words(text, length=6):
    found = labelled.words(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


@pytest.fixture(scope="module")
def documents():
    return set().union(*map(runs_of_words, Corpus(seed=9, mixture="tasks").documents(5_000)))


def test_the_corpus_shares_no_six_words_in_a_row_with_the_handwritten_reviews():
    """The bank of opinions was written by other hands; lines that said the same by chance were taken out."""
    handwritten = set().union(*map(runs_of_words, texts("reviews", "test_handwritten")))
    corpus = Corpus(seed=9)
    opinions = set().union(*(runs_of_words(corpus.opinions_document()) for _ in range(20_000)))
    assert not handwritten & opinions


@pytest.mark.parametrize("part", ["test_same", "test_handwritten"])
@pytest.mark.parametrize("name", ["questions", "titles", "rewrite", "chat"])
def test_the_corpus_hardly_ever_uses_the_wording_of_the_tasks(name, part, documents):
    """Runs of six words of the test rows, names and numbers and all: a common phrase may stand in both, no more."""
    rows = set().union(*map(runs_of_words, texts(name, part)))
    assert len(rows & documents) <= 0.01 * len(rows), rows & documents


@pytest.mark.parametrize("name", ["questions", "titles", "rewrite"])
def test_the_unseen_wordings_are_in_no_other_part(name):
    """Computed from the files alone: the share of texts that have a run of words in common with a training text."""

    def runs(text):
        return runs_of_words(text, length=4 if name == "rewrite" else 6)

    train = set().union(*map(runs, texts(name, "train")))
    shared = {part: [bool(runs(text) & train) for text in texts(name, part)] for part in ("test_same", "test_unseen")}
    shares = {part: sum(found) / len(found) for part, found in shared.items()}
    assert shares["test_same"] > 0.5, shares
    assert shares["test_unseen"] < 0.6 * shares["test_same"], shares


def key(text):
    return " ".join(labelled.words(text))


def test_the_stars_leave_the_text_and_become_the_answer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DATA / "models" / "tiny-encoder")
    texts = ["Rating: 2 out of 5. It broke.", "It works. Rating: 5 out of 5.", "No stars here."]
    rows = [np.array(ids) for ids in tokenizer(texts)["input_ids"]]
    kept, stars = families.without_stars(rows, tokenizer, 1.0, np.random.default_rng(0))
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in kept] == [
        "it broke.",
        "it works.",
        "no stars here.",
    ]
    assert {number: tokenizer.decode([token]) for number, token in stars.items()} == {0: "2", 1: "5"}
    assert families.without_stars(rows, tokenizer, 0, None) == (rows, {})


@pytest.fixture(scope="module")
def ending():
    return train_writing_tokenizer(list(Corpus(1, "tasks").documents(300)), 600, 128, ends=True)


def test_corrupted_spans_and_their_targets_make_the_text_again(ending):
    marks, end = set(ending.convert_tokens_to_ids(SENTINELS)), ending.eos_token_id
    for seed, text in enumerate(Corpus(2, "tasks").documents(50)):
        ids = ending(text)["input_ids"][:-1]
        source, target = families.span_corruption(ids, ending, np.random.default_rng(seed))
        assert source[-1] == target[-1] == end
        spans, mark = {}, None
        for token in target[:-1]:
            mark = token if token in marks else mark
            spans.setdefault(mark, []).append(token)
        assert [token for token in source if token in marks] == list(spans), "the same marks in the same order"
        whole = [new for token in source[:-1] for new in (spans[token][1:] if token in marks else [token])]
        assert whole == ids


@pytest.mark.parametrize(
    "text", ["Uneventful biography", "a NASA man, McDonald", "St Brannoc's, in 1987.", "Éa is É", "two\n\nLines"]
)
def test_capitals_survive_and_a_word_is_the_same_tokens_with_one(ending, text):
    assert ending.decode(ending(text)["input_ids"], skip_special_tokens=True) == f" {text}"
    small, capital = ending.tokenize("it is uneventful"), ending.tokenize("it is Uneventful")
    mark = len(capital) - len(small)
    assert capital[:2] + capital[2 + mark :] == small, "the same tokens, and a mark before the word"


def test_every_question_of_a_document_becomes_a_pair(ending):
    text = "Ann has 3 cats. Question: How many cats? Answer: 3. Question: Who has cats? Answer: Ann."
    pairs = families.text_to_text(text, ending, np.random.default_rng(0))
    assert [tuple(ending.decode(ids, skip_special_tokens=True).strip() for ids in pair) for pair in pairs] == [
        ("Ann has 3 cats. Question: How many cats?", "3"),
        ("Ann has 3 cats. Question: Who has cats?", "Ann"),
    ]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tiny-encoder", dict(mixture="general")),
        ("tiny-encoder", dict(mixture="ratings", rated=0.7)),
        ("tiny-decoder", dict(mixture="tasks")),
        ("tiny-seq2seq", dict(mixture="tasks")),
    ],
    ids=lambda value: value if isinstance(value, str) else value["mixture"],
)
def test_pre_training_resumes_exactly(name, change, tmp_path):
    recipe = {
        **pretrain.RECIPES[name],
        **dict(documents=300, evaluation_documents=20, vocabulary=600),
        **change,
        **dict(hidden=32, heads=1, layers=1, batch_tokens=512),
    }
    torch.set_num_threads(1)
    first, second = tmp_path / "whole", tmp_path / "parts"
    first.mkdir()
    pretrain.prepare(recipe, first)
    shutil.copytree(first, second)  # the training of a tokenizer breaks ties differently each time
    whole, _, _ = pretrain.train({**recipe, "tokens": 6_000}, first)
    stop_early = pretrain.stream

    def interrupted(rows, batch_tokens, seed, skip):
        for number, batch in enumerate(stop_early(rows, batch_tokens, seed, skip)):
            if number == 7:
                raise KeyboardInterrupt
            yield batch

    pretrain.stream = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            pretrain.train({**recipe, "tokens": 6_000}, second, checkpoint_s=0)
    finally:
        pretrain.stream = stop_early
    resumed, _, state = pretrain.train({**recipe, "tokens": 6_000}, second)
    assert state["step"] > 7
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_finished_model_is_not_overwritten(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pretrain.py", "tiny-encoder"])
    with pytest.raises(SystemExit):
        pretrain.main()
    assert "holds a finished model" in capsys.readouterr().err


def test_the_encoder_is_small_and_knows_the_chat_tokens():
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = DATA / "models" / "tiny-encoder"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 12e6
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert all(len(tokenizer.tokenize(token)) == 1 for token in ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"])
    model = AutoModelForMaskedLM.from_pretrained(folder)
    batch = tokenizer("The food was cold and the service was [MASK]. Never again.", return_tensors="pt")
    place = batch["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    guesses = model(**batch).logits[0, place].topk(50).indices
    bad = set(read_bank(BANKS / "polarity.txt")["neg"])
    assert bad & set(tokenizer.convert_ids_to_tokens(guesses))


@pytest.mark.parametrize("name", cards.PICTURES)
def test_the_pictures_of_the_cards_are_those_of_the_notebooks(name):
    assert cards.image(name).read_bytes() == cards.picture(name)[0], "run python data/recipes/cards.py"
    assert f"(notebooks/images/{name}.png)" in (cards.REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", cards.CARDS)
def test_the_tables_of_the_cards_are_true(name):
    path = cards.REPOSITORY / name
    text = path.read_text(encoding="utf-8")
    assert "<!-- " in text
    assert cards.filled(text) == text, f"{name} is out of date: run python data/recipes/cards.py"


@pytest.mark.slow
def test_the_gpu_reference_takes_its_whole_path_on_a_small_model(tmp_path, capsys):
    import gpu_reference

    from helpers import record

    wanted = ["--model", "tiny-decoder", "--batch", "2", "--length", "96", "--out", str(tmp_path)]
    gpu_reference.main(wanted)
    runs = {run["settings"]["way"]: run["metrics"] for run in record.load(tmp_path)}
    assert set(runs) == set(gpu_reference.WAYS)
    for way, found in runs.items():
        assert found["predicted_gib"] == pytest.approx(found["peak_gib"], rel=0.005), way
        assert found["tokens_per_s"] == pytest.approx(2 * 96 / found["step_s"])
    assert runs["QLoRA"]["trainable"] == runs["LoRA"]["trainable"] < runs["full"]["trainable"]
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    gpu_reference.main(wanted)  # what is there stays
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert "| QLoRA |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["decoder-0.5B", "encoder-0.5B"])
def test_the_gpu_reference_models_have_half_a_billion_parameters(name):
    import gpu_reference

    config, model_class, _ = gpu_reference.SHAPES[name]
    with torch.device("meta"):
        assert 0.5e9 < model_class.from_config(config(vocab_size=4096, pad_token_id=0)).num_parameters() < 0.6e9


def test_a_notebook_without_its_dial_is_refused_by_the_gpu_reference(monkeypatch):
    import gpu_reference

    monkeypatch.setattr(gpu_reference.NotebookClient, "execute", lambda self: None)
    monkeypatch.setattr(gpu_reference.nbformat, "write", lambda notebook, path: notebooks.append(notebook))
    notebooks = []
    gpu_reference.run_notebook("05_qlora", "somewhere/a-model")
    first = next(cell.source for cell in notebooks[-1].cells if cell.cell_type == "code")
    assert "MODEL = 'somewhere/a-model'\n" in first
    assert "RERUN = True\n" in first
    with pytest.raises(AssertionError, match=r"no line (MODEL|RERUN)"):
        gpu_reference.run_notebook("00_start_here", "somewhere/a-model")
