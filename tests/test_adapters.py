"""`helpers.adapters`: what an adapter would train, its errors before training, whether a saved one fits.

And what notebooks 04 and 06 write in the open: the life of an adapter, its manifest, and a service with many of them.
"""

import ast
import copy
import functools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from helpers import adapters, env
from notebooks import NOTEBOOKS, code_cells

SMALL = dict(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
ENCODER = BertConfig(**SMALL, intermediate_size=64)
DECODER = LlamaConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, pad_token_id=0)
BOTH = T5Config(vocab_size=120, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)
TINY = env.model_path("tiny-encoder")
FAMILIES = {  # family: configuration, the library's class, peft's task, targets
    "encoder": (ENCODER, "AutoModelForSequenceClassification", "SEQ_CLS", ["query", "value"]),
    "decoder": (DECODER, "AutoModelForCausalLM", "CAUSAL_LM", "all-linear"),
    "encoder-decoder": (BOTH, "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", ["q", "v", "wi", "wo"]),
    "tiny-encoder": (TINY, "AutoModelForSequenceClassification", "SEQ_CLS", ["Wqkv", "Wo", "Wi"]),
}


@functools.cache
def in_the_open(notebook, *functions):
    """The functions that a notebook defines, from its cells."""
    space = {"torch": torch, "adapters": adapters, "Path": Path, "PeftModel": PeftModel}
    for cell in code_cells(nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4)):
        if any(f"def {name}(" in cell.source for name in functions):
            nodes = ast.parse(cell.source)
            if notebook == "04_lora":  # its cells go on to use what they define
                nodes.body = [node for node in nodes.body if isinstance(node, ast.FunctionDef)]
            exec(compile(nodes, notebook, "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in functions})


def life(*args, **options):
    return in_the_open("04_lora", "logits_of", "life").life(*args, **options)


def service_of_06():
    return in_the_open("06_multi_adapter", "fingerprint", "sign", "check_manifest", "add", "use", "remove")


def lora(task="SEQ_CLS", **more):
    return LoraConfig(task_type=task, **more)


# ---- The plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_counts_what_peft_makes(family):
    config, kind, task, targets = FAMILIES[family]
    peft_config = lora(task, target_modules=targets, r=4)
    planned = adapters.plan(config, peft_config)
    config = config if not isinstance(config, str) else transformers.AutoConfig.from_pretrained(config)
    model = get_peft_model(getattr(transformers, kind).from_config(config), peft_config)
    assert (planned.trainable, planned.total) == model.get_nb_trainable_parameters()
    assert sum(row["trained"] for row in planned.rows) == planned.trainable
    assert all(row["layers"] and row["shape"] for row in planned.rows)


@pytest.mark.parametrize(
    ("config", "targets"),
    [(RobertaConfig(), ["query", "value"]), (DistilBertConfig(), ["q_lin"]), (GPT2Config(), ["c_attn"])],
)
def test_layers_that_are_trained_whole_are_counted_apart(config, targets):
    planned = adapters.plan(config, lora(target_modules=targets))
    assert planned.whole == sum(row["trained"] for row in planned.rows if row["whole"]) > 0
    assert planned.adapter == planned.trainable - planned.whole


def test_the_well_known_count_of_roberta_is_not_what_peft_trains():
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=3)
    planned = adapters.plan(config, lora(target_modules=["query", "key", "value", "dense"], r=8))
    assert (planned.trainable, planned.total) == (1_920_003, 126_567_942)
    assert {row["layer"] for row in planned.rows if "dense" in row["layer"] and not row["whole"]} == {
        "roberta.encoder.layer.*.attention.output.dense",
        "roberta.encoder.layer.*.intermediate.dense",
        "roberta.encoder.layer.*.output.dense",
    }
    assert [(row["layer"], row["shape"]) for row in planned.rows if row["whole"]] == [
        ("classifier.dense", "768x768"),
        ("classifier.out_proj", "3x768"),
    ]


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10),
        peft.IA3Config(task_type="SEQ_CLS", target_modules=["Wqkv", "mlp.Wo"], feedforward_modules=["mlp.Wo"]),
        lora(target_modules=r".*layers\.0\..*Wqkv", use_dora=True),
        lora(target_modules="all-linear"),
    ],
)
def test_other_methods_are_planned_too(config):
    planned = adapters.plan(TINY, config)
    real = transformers.AutoModelForSequenceClassification.from_config(ModernBertConfig.from_pretrained(TINY))
    assert (planned.trainable, planned.total) == get_peft_model(real, config).get_nb_trainable_parameters()


def test_a_plan_shows_each_kind_of_layer_once_and_leaves_its_arguments_alone():
    config = lora(target_modules=["query"])
    before = config.to_dict()
    shown = repr(adapters.plan(ENCODER, config)).splitlines()
    assert shown[0].startswith("LoraConfig on BertForSequenceClassification: ")
    assert shown[1].split() == ["layers", "shape", "trained", "whole"]
    assert shown[2].split() == ["bert.encoder.layer.*.attention.self.query", "2", "32x32", "1,024", "False"]
    assert shown[3].split()[0] == "classifier"
    assert shown[3].endswith("True")
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        (ENCODER, lora(target_modules=["qury", "value"]), ["no layer named qury", "closest: query", "dense"]),
        (ENCODER, lora(target_modules="nothing.*"), ["nothing", "all-linear"]),
        (DECODER, lora("CAUSAL_LM", target_modules=["query"]), ["LlamaForCausalLM", "q_proj"]),
        (ModernBertConfig(pad_token_id=0), lora(), ["no default layers for modernbert", "Wqkv"]),
        (ENCODER, lora(target_modules=["query"], r=64), ["query: rank 64, smaller side 32", "Pass r=32"]),
        (ENCODER, LoraConfig(target_modules=["query"]), ["task_type=None", "SEQ_CLS", "random"]),
        (
            ENCODER,
            lora(target_modules=["query"], modules_to_save=["classifer"]),
            ["no layer named classifer", "closest: cl"],
        ),
        (GPT2Config(), lora("CAUSAL_LM", target_modules=["c_atn"]), ["no layer named c_atn", "closest: c_attn"]),
        (GPT2Config(n_embd=32, n_head=2), lora(target_modules=["c_attn"], r=64), ["c_attn: rank 64, smaller side 32"]),
        ("no-such-folder", lora(), ["no-such-folder", "folder with a config.json", "model.config"]),
    ],
)
def test_what_cannot_go_well_is_an_error_before_training(model, config, words):
    with pytest.raises(ValueError, match=words[0]) as error:
        adapters.plan(model, config)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_a_model_type_that_transformers_lacks_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "brand-new"}')
    with pytest.raises(ValueError, match=r"that this transformers can read .*brand-new.*Pass a transformers config"):
        adapters.plan(tmp_path, lora())


def test_a_rank_pattern_is_checked_too():
    adapters.plan(ENCODER, lora(target_modules=["query"], r=32))
    with pytest.raises(ValueError, match="rank 33"):
        adapters.plan(ENCODER, lora(target_modules=["query"], r=8, rank_pattern={"query": 33}))


# ---- Four bits ------------------------------------------------------------------------------------------------------


def test_four_bit_works_here_and_says_so_where_it_does_not(monkeypatch):
    import bitsandbytes

    adapters.check_four_bit("cpu")

    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", broken)
    with pytest.raises(ValueError, match='on 4-bit weights on "cpu": no kernel image'):
        adapters.check_four_bit("cpu")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        adapters.check_four_bit("cpu")


# ---- A saved adapter ------------------------------------------------------------------------------------------------


def base(family, **changes):
    """A model of a family with the same weights each time."""
    config, kind, _, _ = FAMILIES[family]
    models = getattr(transformers, kind)
    transformers.set_seed(0)
    if isinstance(config, str) and changes:
        return models.from_config(transformers.AutoConfig.from_pretrained(config, num_labels=3, **changes))
    if isinstance(config, str):
        return models.from_pretrained(config, num_labels=3).eval()
    config = copy.deepcopy(config)
    config.update(changes)
    return models.from_config(config).eval()


def trained(family):
    """A peft model whose adapter does something, as after training, and a batch for it."""
    _, _, task, targets = FAMILIES[family]
    model = get_peft_model(base(family), lora(task, target_modules=targets, r=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2)
    batch = {"input_ids": torch.randint(5, 100, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    if family == "encoder-decoder":
        batch["labels"] = batch["input_ids"][:, :4].contiguous()
    return model, batch


FRESH = """
import json, sys
import torch, transformers
from peft import PeftModel

transformers.utils.logging.disable_progress_bar()
for kind, base, adapter, batch in json.load(sys.stdin):
    batch = {name: torch.tensor(rows) for name, rows in batch.items()}
    model = PeftModel.from_pretrained(getattr(transformers, kind).from_pretrained(base), adapter).eval()
    with torch.no_grad():
        print(json.dumps(model(**batch).logits.tolist()))
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_life_of_an_adapter(family, tmp_path):
    model, batch = trained(family)
    model.save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(base(family), tmp_path / "adapter")
    found = life(model, batch, base=base(family), reloaded=reloaded)
    assert found["trained"] > 0.01
    assert found["reloaded"] == found["switched off"] == 0
    assert found["merged"] < 1e-3 * max(1, found["trained"])
    assert found["unmerged"] < 1e-3 * max(1, found["trained"])


@pytest.mark.slow
def test_adapters_answer_the_same_in_a_fresh_process(tmp_path):
    """One process for all families: importing the libraries is most of its time."""
    asked, expected = [], {}
    for family in FAMILIES:
        model, batch = trained(family)
        folders = [str(tmp_path / family / part) for part in ("base", "adapter")]
        base(family).save_pretrained(folders[0])
        model.save_pretrained(folders[1])
        asked.append([FAMILIES[family][1], *folders, {name: tensor.tolist() for name, tensor in batch.items()}])
        with torch.no_grad():
            expected[family] = model.eval()(**batch).logits
    call = [sys.executable, "-c", FRESH]
    done = subprocess.run(call, input=json.dumps(asked), capture_output=True, text=True, check=True)
    for (family, logits), line in zip(expected.items(), done.stdout.splitlines(), strict=True):
        assert torch.allclose(torch.tensor(json.loads(line)), logits, atol=1e-5), family


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_fits_its_own_base(family, tmp_path):
    model, _ = trained(family)
    model.save_pretrained(tmp_path)
    adapters.check_fits(tmp_path, base(family))
    adapters.check_fits(tmp_path, trained(family)[0])  # a base that has an adapter already


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("encoder", dict(num_labels=5), ["2 rows", "5", "num_labels=2"]),
        ("encoder", dict(hidden_size=64), ["32 inputs", "this base has 64"]),
        ("encoder", dict(num_hidden_layers=1), ["lacks", "of another model"]),
        ("decoder", dict(intermediate_size=96), ["with 64", "this base has 96"]),
        ("encoder-decoder", dict(num_layers=1), ["lacks"]),
        ("tiny-encoder", dict(hidden_size=64, num_attention_heads=2), ["160 inputs", "this base has 64"]),
    ],
)
def test_an_adapter_of_another_base_is_an_error(family, changes, words, tmp_path):
    trained(family)[0].save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match=words[0]) as error:
        adapters.check_fits(tmp_path / "mine", base(family, **changes))
    assert all(word in str(error.value) for word in words), error.value
    assert "mine" in str(error.value)
    assert str(tmp_path) not in str(error.value)


GPT2 = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=60, pad_token_id=0)


def gpt2(kind="AutoModelForCausalLM", **changes):
    config = copy.deepcopy(GPT2)
    config.update(changes)
    return getattr(transformers, kind).from_config(config)


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        (dict(target_modules=["c_attn"]), {}, None),  # a Conv1D, whose weight has its sides the other way round
        (dict(target_modules=["c_attn"]), dict(n_embd=64), "c_attn with 32 inputs, this base has 64"),
        (
            dict(target_modules=["c_fc"], fan_in_fan_out=True),
            dict(n_inner=48),
            "c_fc with 128 outputs, this base has 48",
        ),
        (dict(target_modules=["wte", "c_attn"]), {}, None),
        (dict(target_modules=["wte", "c_attn"]), dict(vocab_size=58), "resize_token_embeddings.60."),
        (dict(target_modules=["c_attn"], modules_to_save=["wte"]), dict(vocab_size=58), "resize_token_embeddings.60."),
        (
            dict(target_modules=["c_attn"], trainable_token_indices=[58, 59]),
            dict(vocab_size=58),
            "new token 59, .*embeddings.60.",
        ),
        (dict(target_modules=["c_attn"], trainable_token_indices={"wte": [59]}), {}, None),
        (
            dict(target_modules=["c_attn"], trainable_token_indices={"wte": [59]}),
            dict(vocab_size=59),
            "Load the tokenizer",
        ),
    ],
)
def test_conv1d_and_tables_of_tokens(settings, changes, words, tmp_path):
    get_peft_model(gpt2(), lora("CAUSAL_LM", r=4, **settings)).save_pretrained(tmp_path, save_embedding_layers=False)
    if words is None:
        adapters.check_fits(tmp_path, gpt2(**changes))
        adapters.check_fits(tmp_path, get_peft_model(gpt2(**changes), lora("CAUSAL_LM", r=4, **settings)))
        return
    with pytest.raises(ValueError, match=words):
        adapters.check_fits(tmp_path, gpt2(**changes))


@pytest.mark.parametrize(
    ("saved_as", "task", "loaded_as", "labels", "words"),
    [
        (
            "AutoModelForSequenceClassification",
            "SEQ_CLS",
            "AutoModelForCausalLM",
            2,
            "score, .* AutoModelForSequenceCl",
        ),
        ("AutoModelForSequenceClassification", "SEQ_CLS", "AutoModelForSequenceClassification", 4, "num_labels=2"),
        (
            "AutoModelForTokenClassification",
            "TOKEN_CLS",
            "AutoModelForSequenceClassification",
            2,
            "classifier, .*lacks",
        ),
    ],
)
def test_a_head_of_another_task_or_size(saved_as, task, loaded_as, labels, words, tmp_path):
    get_peft_model(gpt2(saved_as), lora(task, target_modules=["c_attn"], r=4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        adapters.check_fits(tmp_path, gpt2(loaded_as, num_labels=labels))


def test_a_resized_base_that_is_not_resized_again_needs_the_tokenizer(tmp_path):
    """Tokens were added, the tied embeddings resized, and peft saves them with the adapter."""
    base = gpt2()
    base.name_or_path = str(tmp_path / "base")
    base.save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(62, mean_resizing=False)
    get_peft_model(base, lora("CAUSAL_LM", target_modules=["c_attn"], r=4)).save_pretrained(tmp_path / "adapter")
    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.raises(
        ValueError, match=r"wte.weight with 62 rows, this base has 60 tokens.*tokenizer.*embeddings\(62\)"
    ):
        adapters.check_fits(tmp_path / "adapter", fresh)
    fresh.resize_token_embeddings(62, mean_resizing=False)
    adapters.check_fits(tmp_path / "adapter", fresh)


def test_another_name_is_an_error_that_can_be_waived(tmp_path):
    trained("tiny-encoder")[0].save_pretrained(tmp_path / "mine")
    renamed = base("tiny-encoder")
    renamed.config._name_or_path = renamed.name_or_path = "org/other"
    with pytest.raises(ValueError, match='trained on "tiny-encoder", this base is "other"'):
        adapters.check_fits(tmp_path / "mine", renamed)
    adapters.check_fits(tmp_path / "mine", renamed, any_name=True)


def test_a_folder_without_an_adapter_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no adapter: no adapter_config"):
        adapters.check_fits(tmp_path, base("encoder"))


# ---- Many adapters on one base --------------------------------------------------------------------------------------


def saved(folder, seed, labels=2):
    """An adapter of the tiny encoder whose numbers are drawn from the seed, saved and signed."""
    transformers.set_seed(0)
    models = transformers.AutoModelForSequenceClassification
    model = get_peft_model(models.from_pretrained(TINY, num_labels=labels), lora(target_modules=["Wqkv"], r=4))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    service_of_06().sign(folder, model, version=1)
    return folder


@pytest.fixture
def service(tmp_path):
    """A base that serves "one" and "two", a batch, and a check that both answer as before."""
    folders = {name: saved(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    base = transformers.AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=2)
    model = PeftModel.from_pretrained(base, folders["one"], adapter_name="one").eval()
    service_of_06().add(model, "two", folders["two"])
    ids = torch.randint(5, 100, (3, 7), generator=torch.Generator().manual_seed(0))

    def answers():
        found = {}
        for name in ("one", "two"):
            service_of_06().use(model, name)
            with torch.no_grad():
                found[name] = model(input_ids=ids).logits
        service_of_06().use(model, "one")
        return found

    before = answers()
    assert not torch.allclose(before["one"], before["two"], atol=1e-2)

    def unchanged():
        after = answers()
        return list(model.peft_config) == ["one", "two"] and all(torch.equal(before[n], after[n]) for n in before)

    return model, unchanged


def mistaken(case, model, folder):
    """What somebody does wrong."""
    if case == "two adapters with one name":
        service_of_06().add(model, "two", saved(folder / "third", 3))
    elif case == "a second PeftModel on the same base":
        adapters.check_fits(saved(folder / "third", 3), model.get_base_model())
    elif case == "no such adapter":
        service_of_06().use(model, "tow")
    elif case == "no such adapter to remove":
        service_of_06().remove(model, "three")
    elif case == "removed while active":
        service_of_06().remove(model, "one")
    elif case == "no such folder":
        service_of_06().add(model, "three", folder / "nowhere")
    elif case == "another number of labels":
        service_of_06().add(model, "three", saved(folder / "third", 3, labels=5))
    else:
        third = saved(folder / "third", 3)
        weights, manifest = third / "adapter_model.safetensors", third / "manifest.json"
        content = bytearray(weights.read_bytes())
        if case == "truncated":
            weights.write_bytes(content[: len(content) // 2])
        elif case == "a bit flipped":
            content[-10] ^= 64
            weights.write_bytes(content)
        elif case == "another base":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"base_sha256": "0" * 64}))
        service_of_06().add(model, "three", third)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("two adapters with one name", ['adapter "two" already', "remove"]),
        ("a second PeftModel on the same base", ["carries the layers of adapters already", "load_adapter"]),
        ("no such adapter", ['no adapter "tow"', "closest: two", "one, two"]),
        ("no such adapter to remove", ['no adapter "three"', "one, two"]),
        ("removed while active", ['"one" is active', "use(model, name)"]),
        ("no such folder", ["nowhere holds no adapter"]),
        ("another number of labels", ["5 rows", "num_labels=5"]),
        ("truncated", ["weights in third cannot be read", "copy"]),
        ("a bit flipped", ["third are not those that were signed", "sha256"]),
        ("another base", ["fingerprint 00000000", "tiny-encoder"]),
    ],
)
def test_a_mistake_is_one_clear_error_and_the_service_answers_as_before(case, words, service, tmp_path):
    model, unchanged = service
    with pytest.raises(ValueError, match=words[0]) as error:
        mistaken(case, model, tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert unchanged()


def test_what_is_not_a_mistake_is_none(service, tmp_path):
    model, unchanged = service
    mistaken("nothing wrong", model, tmp_path)
    assert list(model.peft_config) == ["one", "two", "three"]
    service_of_06().use(model, "three")
    service_of_06().use(model, "one")
    service_of_06().remove(model, "three")
    assert unchanged()


def test_a_second_peft_model_overwrites_the_first_without_our_check(service, tmp_path):
    """The fault that `check_fits` refuses; if peft mends it one day, this test says so."""
    model, unchanged = service
    PeftModel.from_pretrained(model.get_base_model(), saved(tmp_path / "third", 3), adapter_name="one")
    assert not unchanged()


def test_a_fingerprint_is_of_the_base_alone():
    before = service_of_06().fingerprint(base("tiny-encoder"))
    model, _ = trained("tiny-encoder")
    assert service_of_06().fingerprint(model) == before
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "base_layer" in name)[0, 0] += 1e-3
    assert service_of_06().fingerprint(model) != before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_signed_adapter_fits_its_own_base(family, tmp_path):
    model, _ = trained(family)
    model.save_pretrained(tmp_path)
    assert service_of_06().sign(tmp_path, model, version=3)["version"] == 3
    service_of_06().check_manifest(tmp_path, base(family))
    if family != "tiny-encoder":  # its base is on disk and always the same
        config, kind, _, _ = FAMILIES[family]
        transformers.set_seed(5)
        with pytest.raises(ValueError, match="belongs to a base with the fingerprint"):
            service_of_06().check_manifest(tmp_path, getattr(transformers, kind).from_config(copy.deepcopy(config)))
