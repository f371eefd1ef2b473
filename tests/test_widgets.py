"""The panels without a front end: what their buttons do, done from code. The front end itself: test_browser.py."""

import re
import threading
import time

import pytest
import torch
from matplotlib.figure import Figure
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from helpers import env, memory, record, widgets

ROWS = [{"input_ids": torch.arange(16) + i % 7, "labels": torch.tensor(i % 7 % 2)} for i in range(64)]
SMALL = dict(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


@pytest.fixture(autouse=True)
def _calm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env.quiet()


def train(learning_rate=1e-3, epochs=1, schedule="linear", seed=0, callbacks=()):
    """A real Trainer on a model of nothing: some hundred steps a second."""
    if schedule == "broken":
        raise KeyError("no such schedule")
    set_seed(seed)
    model = BertForSequenceClassification(BertConfig(**SMALL))
    arguments = TrainingArguments(
        "out", learning_rate=learning_rate, num_train_epochs=epochs, seed=seed, lr_scheduler_type=schedule,
        logging_steps=2, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:16], callbacks=list(callbacks))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.evaluate()
    return trainer


@pytest.fixture
def panel(tmp_path):
    made = tuning(tmp_path / "runs")
    yield made
    made.stop()
    made._thread and made._thread.join()


def tuning(folder):
    schedules = ["linear", "constant", "broken"]
    return widgets.tune(train, folder=folder, learning_rate=(1e-5, 1e-1), epochs=(1, 5000), schedule=schedules)


def row(panel, number):
    """What stands in a row of the settings."""
    return panel.box.children[0].children[0].children[number]


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_run_becomes_a_record_and_a_row_of_the_history(panel):
    panel.start(learning_rate=2e-3).wait()
    (run,) = record.load(panel.folder)
    assert run["settings"] == {"learning_rate": 2e-3, "epochs": 1, "schedule": "linear", "seed": 0}
    assert run["outcome"] == "finished"
    assert (run["machine"], run["versions"]) == (env.machine(), env.versions())
    assert run["curve"]
    assert set(run["metrics"]) == {"eval_loss", "train_loss"}
    assert run["metrics"]["eval_loss"] == panel.result.state.log_history[-1]["eval_loss"]
    assert "0.002" in panel.history.value
    last = [row for row in run["curve"] if "loss" in row][-1]
    assert f'alt="training loss {last["loss"]:.3f} at step {last["step"]}, validation loss' in panel.picture.value
    assert list(panel.table()["run"]) == ["run"]
    assert panel.table()["eval_loss"].iloc[0] == run["metrics"]["eval_loss"]


def test_stop_ends_a_run_at_its_next_step_and_leaves_a_model_and_a_record(panel):
    panel.start(epochs=5000)
    until(lambda: panel.progress.value > 5)
    panel.stop()
    panel.wait()
    run = panel.records[-1]
    assert run["outcome"] == "stopped"
    assert run["curve"][-1]["step"] < panel.progress.max / 10, "of 20,000 steps, most are left out"
    batch = {name: value[None] for name, value in ROWS[0].items()}
    assert torch.isfinite(panel.model(**{name: value.to(panel.model.device) for name, value in batch.items()}).loss)
    assert not panel.start_button.disabled
    assert panel.stop_button.disabled
    panel.start(epochs=1).wait()
    assert panel.records[-1]["outcome"] == "finished"


def test_a_second_start_is_refused_and_the_first_goes_on(panel):
    panel.start(epochs=5000)
    with pytest.raises(RuntimeError, match="no second one"):
        panel.start(epochs=1)
    panel._clicked()  # the button says the same in the panel
    panel.stop()
    panel.wait()
    assert len(panel.records) == 1
    assert panel.records[0]["settings"]["epochs"] == 5000


def test_an_error_is_shown_in_full_and_the_panel_is_usable_again(panel):
    with pytest.raises(KeyError, match="no such schedule"):
        panel.start(schedule="broken").wait()
    assert "Traceback" in panel.problem.value
    assert "in train" in panel.problem.value
    assert panel.records[-1]["outcome"] == "failed"
    panel.start(schedule="linear").wait()
    assert panel.problem.value == ""
    assert panel.records[-1]["outcome"] == "finished"


def test_the_history_is_read_back_and_nothing_is_overwritten(panel):
    panel.start().wait()
    first = (panel.folder / "run.json").read_bytes()
    again = tuning(panel.folder)
    assert [run["name"] for run in again.records] == ["run"]
    assert ">run<" in again.history.value
    again.start(learning_rate=3e-3).wait()
    assert (panel.folder / "run.json").read_bytes() == first
    assert [run["name"] for run in record.load(panel.folder)] == ["run", "run-2"]
    (marked,) = re.findall(r"#(\w+) {\s+font-weight: bold", again.history.value)
    assert re.search(rf'id="{marked}"[^>]*>0.003<', again.history.value)
    assert "1 earlier runs in grey" in again.picture.value


def test_the_code_of_a_run_gives_its_loss_again(panel):
    panel.start(learning_rate=3e-3, epochs=2).wait()
    panel.start(learning_rate=1e-4, epochs=1).wait()
    panel.chosen.value = "run"
    panel.use_button.click()
    space = {"train": train}
    exec(panel.code_text.value, space)
    final = [row["train_loss"] for row in space["result"].state.log_history if "train_loss" in row]
    assert final == [panel.records[0]["metrics"]["train_loss"]]
    assert panel.settings["learning_rate"] == 3e-3, "the controls go to the settings of the run"


def test_a_run_that_diverges_does_not_flatten_the_others(tmp_path):
    curves = [[{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.1}]]
    curves += [[{"step": 1, "loss": 0.6}, {"step": 2, "loss": 1e6}, {"step": 3, "loss": float("nan")}]]
    for curve in curves:
        record.save(tmp_path, "run", settings={}, metrics={}, curve=curve)
    panel = tuning(tmp_path)
    assert 'alt="training loss 1000000.000 at step 2; 1 earlier runs in grey"' in panel.picture.value
    ax = panel._chart(Figure().subplots())
    assert [list(line.get_xdata()) for line in ax.get_lines()] == [[1, 2], [1, 2, 3]]
    assert ax.get_ylim()[1] == pytest.approx(1.3)


def test_seeds_and_a_sweep_are_queued_and_the_queue_stops(panel):
    panel.start(seeds=2).wait()
    assert [run["settings"]["seed"] for run in panel.records] == [0, 1]
    panel.start(sweep="learning_rate").wait()
    rates = [run["settings"]["learning_rate"] for run in panel.records[2:]]
    assert rates == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    panel.start(sweep="learning_rate", epochs=5000)
    until(lambda: panel.progress.value > 5 and panel.progress.max > 1000)
    panel.stop()
    panel.wait()
    assert len(panel.records) == 8, "the four that were queued do not begin"


def test_a_typed_number_is_exact_and_a_dragged_one_has_two_digits(panel):
    text, slider = panel.controls["learning_rate"], row(panel, 0).children[1]
    text.value = 0.00031416
    assert (text.value, slider.value) == (0.00031416, 0.00031416)
    slider.value = 10**-3.5  # what the front end makes of what was typed
    assert text.value == 0.00031416
    slider.value = 10**-2.5
    assert (text.value, slider.value) == (0.0032, 10**-2.5), "a dragged slider is not pushed"


def test_every_control_has_a_label_and_a_tooltip(panel):
    def leaves(widget):
        return (
            [leaf for child in widget.children for leaf in leaves(child)] if hasattr(widget, "children") else [widget]
        )

    model = AutoModelForCausalLM.from_pretrained(env.model_path("tiny-decoder"))
    tokenizer = AutoTokenizer.from_pretrained(env.model_path("tiny-decoder"))
    for one in (panel, widgets.will_it_fit(), widgets.decode(model, tokenizer)):
        for leaf in leaves(one.box):
            if not isinstance(leaf, widgets.ipywidgets.HTML):
                assert leaf.description or leaf.tooltip, leaf


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"rate": (1e-5, 1e-2)}, "no parameter rate"),
        ({"learning_rat": (1e-5, 1e-2)}, "it has learning_rate"),
        ({"learning_rate": (1e-2, 1e-5)}, "lowest, highest"),
        ({"learning_rate": (1e-2, 1e-1)}, "default, 0.001, is not between"),
        ({"learning_rate": 3}, "a list of choices"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(tmp_path, ranges, message):
    with pytest.raises(ValueError, match=message):
        widgets.tune(train, folder=tmp_path, **ranges)


def test_a_function_without_callbacks_or_with_a_bare_parameter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no parameter callbacks"):
        widgets.tune(lambda rate=1e-3: None, folder=tmp_path, rate=(1e-5, 1e-2))
    with pytest.raises(ValueError, match="give a range here"):
        widgets.tune(lambda rank, callbacks: None, folder=tmp_path)
    with pytest.raises(ValueError, match="no control seed"):
        tuning(tmp_path).start(sweep="seed")


# ---- will_it_fit ----------------------------------------------------------------------------------------

TINY = dict(model="tiny-encoder", method="full", precision="fp32", gpu="T4 (16 GB)")


def test_a_prediction_is_that_of_memory_and_is_kept():
    panel = widgets.will_it_fit(**TINY, batch=4, length=64)
    panel.start().wait()
    wanted = memory.predict(env.model_path("tiny-encoder"), batch=4, length=64, dtype="float32")
    assert panel.prediction.peak == wanted.peak
    assert panel.fit.answer == "yes"
    before = panel.prediction
    panel.start(gpu="H100 (80 GB)").wait()
    assert panel.prediction is before, "another GPU, the same training"
    assert "H100" in panel.picture.value
    assert "<img alt=" in panel.picture.value


def test_a_stale_prediction_is_dropped_and_the_newest_question_is_answered(monkeypatch):
    asked, go = [], threading.Event()
    real = memory.predict

    def slow(**arguments):
        asked.append(arguments["batch"])
        go.wait(10)
        return real(**arguments)

    monkeypatch.setattr(memory, "predict", slow)
    panel = widgets.will_it_fit(**TINY, length=32)
    panel.start(batch=1)
    until(lambda: asked == [1])
    for batch in (2, 3, 4):  # the slider moves on
        panel.controls["batch"].value = batch
    go.set()
    panel.wait()
    assert asked == [1, 4]
    assert [answer["batch"] for answer in panel.answers] == [4]


@pytest.fixture
def small_gpu(monkeypatch):
    """A GPU, and settings of the tiny encoder that need about 3 GiB."""
    monkeypatch.setitem(widgets.GPUS, "small (2 GB)", 2.2)
    return TINY | dict(gpu="small (2 GB)", batch=64, length=256)


def test_the_smallest_change_makes_it_fit(small_gpu):
    panel = widgets.will_it_fit(**small_gpu).start().wait()
    assert panel.fit.answer != "yes"
    batch, steps = panel.change["batch"], panel.change["gradient_accumulation_steps"]
    assert (panel.change.keys(), batch * steps) == ({"batch", "gradient_accumulation_steps"}, 64)
    assert f"It fits with: batch {batch}, gradient accumulation steps {steps}." in panel.status.value
    assert panel.start(batch=batch).wait().fit.answer == "yes"
    assert [answer["batch"] for answer in panel.answers] == [64, batch]


def test_the_search_for_a_change_stops(small_gpu, monkeypatch):
    asked, go = [], threading.Event()
    real = memory.predict

    def slow(**arguments):
        asked.append(arguments["batch"])
        if len(asked) > 1:
            go.wait(10)
        return real(**arguments)

    monkeypatch.setattr(memory, "predict", slow)
    panel = widgets.will_it_fit(**small_gpu).start()
    until(lambda: len(asked) == 2)
    panel.stop()
    go.set()
    panel.wait()
    assert len(asked) == 2
    assert panel.fit.answer != "yes"
    assert panel.change is None
    assert "stopped" in panel.status.value


def test_what_cannot_be_predicted_is_said_and_the_panel_goes_on():
    panel = widgets.will_it_fit(**TINY)
    with pytest.raises(ValueError, match="no configuration"):
        panel.start(model="nowhere").wait()
    assert "no configuration" in panel.problem.value
    panel.start(model="tiny-encoder").wait()
    assert panel.problem.value == ""
    assert panel.fit.answer == "yes"


@pytest.mark.parametrize("model", widgets.SHAPES)
def test_the_listed_sizes_are_what_they_are_called(model):
    import transformers

    arguments = widgets._arguments(widgets.will_it_fit(model=model, method="full").settings)
    config = arguments["model"]
    with torch.device("meta"):
        made = (transformers.AutoModelForCausalLM if "Llama" in model else transformers.AutoModel).from_config(config)
    number, unit = float(model.split()[0][:-1]), model.split()[0][-1]
    assert made.num_parameters() / {"M": 1e6, "B": 1e9}[unit] == pytest.approx(number, rel=0.09)


# ---- decode ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer():
    path = env.model_path("tiny-decoder")
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_answers_stand_beside_what_made_them(writer):
    panel = widgets.decode(*writer, "The soup was cold. What was cold?", max_new_tokens=8)
    state = torch.random.get_rng_state()
    for settings in (dict(), dict(temperature=1.5, seed=1), dict(seed=2), dict(seed=1)):
        panel.start(**settings).wait()
    assert torch.equal(torch.random.get_rng_state(), state), "the numbers drawn elsewhere are as they were"
    greedy, one, two, again = (run["answer"] for run in panel.answers)
    assert one == again
    assert len({greedy, one, two}) > 1
    assert list(panel.table().columns) == ["run", "temperature", "seed", "answer", "outcome"]
    assert "next token" in panel.picture.value


def test_the_chances_are_those_of_the_model_and_what_settings_keep(writer):
    panel = widgets.decode(*writer, "The soup was cold. What was cold?", max_new_tokens=2)
    panel.start(temperature=1.0).wait()
    for row in panel.tokens:
        assert row["kept"] == pytest.approx(row["probability"], abs=1e-5)
    panel.start(top_k=2).wait()
    assert [row["kept"] > 0 for row in panel.tokens[:3]] == [True, True, False]
    panel.start(temperature=0.0).wait()
    assert [row["kept"] for row in panel.tokens[:2]] == [1.0, 0.0]
    assert panel.tokens[0]["after"] == ""
    panel.start(show_token=2).wait()
    assert panel.answers[-1]["answer"].startswith((panel.tokens[0]["after"] + panel.tokens[0]["token"]).strip())


def test_a_generation_stops(writer):
    panel = widgets.decode(*writer, "The soup was cold.", max_new_tokens=200)
    panel.start(temperature=2.0, repetition_penalty=2.0)
    panel.stop()
    panel.wait()
    assert panel.answers[-1]["outcome"] == "stopped"
    with pytest.raises(ValueError, match="no control heat"):
        panel.start(heat=1)
