"""The runs on public data are complete, and `env.recommend` lies inside what they measured and near the best of it."""

import json

import public
import pytest

from helpers import env, record

RUNS = [run for runs in public.recorded().values() for run in runs]
PLACES = list(public.recorded().items())
SIZES = {  # rows of validation and test as the sets are
    "ag_news": (600, 3000),
    "movie_sentences": (600, 2000),
    "clinc150": (3000, 4500),
    "wnut17": (1009, 1287),
    "e2e": (public.GENERATED, public.GENERATED),
}


def test_there_are_runs():
    assert {run["settings"]["set"] for run in RUNS} >= {"movie_sentences", "clinc150"}


@pytest.mark.parametrize("run", RUNS, ids=[f"{run['settings']['set']}-{run['name']}" for run in RUNS])
def test_a_record_is_complete_and_its_rows_give_its_score(run):
    settings, task = run["settings"], public.SETS[run["settings"]["set"]][1]
    name = "{model}-{method}-{rows}-{learning_rate:g}-{epochs:g}-{seed}".format(**settings)
    assert run["name"] == name
    assert {"seconds", "machine", "versions", "curve"} <= set(run)
    assert run["curve"][-1]["step"] <= settings["steps"]
    assert set(run["metrics"]) == set(run["rows"])
    for part, rows in run["rows"].items():
        assert len(rows) == SIZES[settings["set"]]["test" in part]
        again = public.summed(task, public.outcomes(rows)[None])[0]
        assert again == pytest.approx(public.first(run, part, task), abs=1e-6)


@pytest.mark.parametrize("run", RUNS, ids=[f"{run['settings']['set']}-{run['name']}" for run in RUNS])
def test_only_the_recommended_setting_saw_test_rows(run):
    parts = {part.removesuffix("_untuned") for part in run["metrics"]}
    assert parts == ({"validation"} if run["settings"]["seed"] == 0 else {"validation", "test"})


def test_records_hold_no_text_of_the_data():
    for path in public.RESULTS.glob("*/*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        texts = [rows for rows in found["rows"].values() if isinstance(rows, str)]
        assert all(set(rows) <= {"0", "1"} for rows in texts)
        assert all(isinstance(n, int | float) for rows in found["rows"].values() if not isinstance(rows, str)
                   for row in rows for n in row)  # fmt: skip


@pytest.mark.parametrize(("key", "runs"), PLACES, ids=["-".join(map(str, key)) for key, _ in PLACES])
def test_the_recommended_rate_is_near_the_best_that_was_measured(key, runs):
    name, rows, model, method = key
    swept = [run for run in runs if run["settings"]["seed"] == 0]
    rates = [run["settings"]["learning_rate"] for run in swept]
    chosen = [run for run in swept if public.is_recommended(run)]
    if len(set(rates)) < 2 or not chosen:
        pytest.skip("not yet swept")
    classes = swept[0]["settings"]["classes"] or None
    assert min(rates) <= env.recommend(model, method, rows, classes)["learning_rate"] <= max(rates)
    task = public.SETS[name][1]
    best = max(public.first(run, "validation", task) for run in swept)
    assert public.first(chosen[0], "validation", task) >= best - (0.03 if task == "tags" else 0.02)


def means(folder, prefix, setting=lambda run: ""):
    """Mean validation score over seeds: {setting: {rate: score}}."""
    scores = {}
    for run in record.load(env.DATA / "results" / folder / "tiny-encoder"):
        if run["name"].startswith(prefix):
            of_rates = scores.setdefault(setting(run), {})
            of_rates.setdefault(run["settings"]["learning_rate"], []).append(run["metrics"]["validation"])
    return {key: {rate: sum(s) / len(s) for rate, s in rates.items()} for key, rates in scores.items()}


@pytest.mark.parametrize(
    ("folder", "prefix", "method"),
    [
        ("01_classification", "rate-pretrained-", "full"),
        ("04_lora", "grid-full-", "full"),
        ("04_lora", "grid-LoRA-0", "lora"),  # each rank and alpha on its own
    ],
)
def test_the_tiny_models_rate_is_near_the_best_of_their_sweeps(folder, prefix, method):
    found = means(folder, prefix, lambda run: run["name"].rsplit("-", 1)[0].partition("-r")[2])
    assert found
    for of_rates in found.values():
        chosen = of_rates[env.recommend("tiny-encoder", method)["learning_rate"]]
        assert chosen >= max(of_rates.values()) - 0.02, of_rates


@pytest.mark.parametrize("name", list(public.SETS))
def test_a_set_reads_the_same_from_a_folder_and_from_the_hub(name, tmp_path, monkeypatch):
    """The Hub is played: its columns have other names, and classes and tags are numbers with names."""
    import datasets

    _, task, columns, there = public.SETS[name]
    y = {"classes": ["b", "a"], "tags": [["O", "B-x"], ["B-x", "I-x"]], "texts": ["one", "two"]}[task]
    x = [["w", "v"], ["u", "w"]] if task == "tags" else ["first", "second"]
    rows = datasets.Dataset.from_dict(dict(zip(columns, (x, y), strict=True)))
    (tmp_path / name).mkdir()
    for part in ("train", "validation", "test"):
        rows.to_json(tmp_path / name / f"{part}.jsonl")
    here, names = public.read.__wrapped__(name, tmp_path)
    features = datasets.Features({"q": datasets.Value("int64"), there[0]: rows.features[columns[0]],
                                  there[1]: rows.features[columns[1]]})  # fmt: skip
    kinds = datasets.ClassLabel(names=["O", "B-x", "I-x"] if task == "tags" else ["a", "b"])
    if task != "texts":
        y = [kinds.str2int(value) for value in y]
        features[there[1]] = datasets.List(kinds) if task == "tags" else kinds
    hub = datasets.Dataset.from_dict({"q": [1, 2], there[0]: x, there[1]: y}, features=features)
    loaded = datasets.DatasetDict(train=hub, validation=hub, test=hub)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: loaded)
    splits, same = public.read.__wrapped__(name, None)
    assert same == names
    assert splits["test"].to_dict() == here["test"].to_dict()


def test_a_difference_and_its_interval():
    same = public.ahead("classes", ["0110" * 50], ["0110" * 50])
    assert same == "+0.0 [+0.0, +0.0]"
    value, low, high = map(float, public.ahead("classes", ["1" * 80 + "0" * 20], ["1" * 60 + "0" * 40]).translate(
        str.maketrans("[],", "   ")).split())  # fmt: skip
    assert value == pytest.approx(20)
    assert 10 < low < 20 < high < 30
    counts = [[1, 1, 1], [0, 1, 1]] * 50
    assert public.ahead("tags", [counts], [[[0, 0, 1]] * 100]).startswith("+50.0 [+")
