"""Projects on the usual families of models, as tiny random models with tokenizers of the right kind, trained here.

Random models show that everything fits together, not that anything is learnt.
"""

import json
import sys

import pytest
import torch
import transformers
from new_projects import QUICK, QUICK_TO_WRITE, RELEASE, load
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from helpers import data, env, new, record

SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=130
)
GPT2 = dict(n_embd=32, n_layer=2, n_head=2, n_positions=160)
DISTILBERT = dict(dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=130)
T5 = dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
BART = {
    f"{side}_{name}": n
    for side in ("encoder", "decoder")
    for name, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
}
FAMILIES = {  # name: configuration, its sizes, the kind of its tokenizer
    "bert": ("BertConfig", SIZES, "WordPiece"),
    "roberta": ("RobertaConfig", SIZES, "byte-level BPE"),
    "distilbert": ("DistilBertConfig", DISTILBERT, "WordPiece"),
    "albert": ("AlbertConfig", SIZES | dict(embedding_size=16), "Unigram"),
    "deberta": ("DebertaV2Config", SIZES, "Unigram"),
    "t5": ("T5Config", T5 | dict(decoder_start_token_id=0), "Unigram"),
    "bart": ("BartConfig", BART | dict(d_model=32, max_position_embeddings=160), "byte-level BPE"),
    "gpt2": ("GPT2Config", GPT2, "byte-level BPE, one special token"),
    "llama": ("LlamaConfig", SIZES, "BPE with fallback to bytes"),
    "mistral": ("MistralConfig", SIZES | dict(num_key_value_heads=1), "BPE with fallback to bytes"),
    "phi": ("PhiConfig", SIZES, "byte-level BPE, one special token"),
}
NO_PREFIX = ("distilbert", "albert", "deberta")  # transformers' own: they take no past keys and values
METHODS = ("full", "lora", "ia3", "prefix")
CASES = [(family, method) for family in FAMILIES for method in METHODS]
if not RELEASE:  # each family once, each method at least twice: new layers, Conv1D, an encoder with a prefix among them
    METHOD_OF = dict(bert="prefix", roberta="full", distilbert="lora", albert="ia3", deberta="lora", t5="full")
    METHOD_OF |= dict(bart="ia3", gpt2="lora", llama="full", mistral="prefix", phi="ia3")
    CASES = list(METHOD_OF.items())
WRITERS = ("t5", "bart", "gpt2", "llama", "mistral", "phi")
pytestmark = pytest.mark.slow


def train_tokenizer(kind, texts):
    """A tokenizer of the kind, with the special tokens that its families have."""
    names = {"WordPiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "Unigram": ("<pad>", "<unk>", "[CLS]", "</s>")}
    pad, unk, begin, end = names.get(kind, ("<pad>", "<unk>", "<s>", "</s>"))
    special, form = [pad, unk, begin, end], f"{begin} $A {end}"
    if kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token=unk))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder, trainer = decoders.WordPiece(), trainers.WordPieceTrainer
    elif kind == "Unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        made.decoder, trainer = decoders.Metaspace(), trainers.UnigramTrainer
    elif kind.startswith("byte-level"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer
        if "one special" in kind:  # as GPT-2 has it: no padding, and the end is the beginning too
            special, begin, end, pad, unk, form = ["<|endoftext|>"], *["<|endoftext|>"] * 2, None, None, None
    else:
        made = Tokenizer(models.BPE(unk_token=unk, byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder, trainer = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]), trainers.BpeTrainer
        form, pad = f"{begin} $A", None
        special = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    more = dict(unk_token=unk) if kind == "Unigram" else {}
    more |= dict(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()) if kind.startswith("byte-level") else {}
    made.train_from_iterator(texts, trainer(vocab_size=600, special_tokens=special, show_progress=False, **more))
    if form:
        ids = [(token, made.token_to_id(token)) for token in special[:4] if token in form]
        made.post_processor = processors.TemplateProcessing(single=form, special_tokens=ids)
    named = dict(bos_token=begin, eos_token=end, pad_token=pad, unk_token=unk)
    if kind in ("WordPiece", "Unigram"):
        named |= dict(cls_token=begin, sep_token=end)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **{k: v for k, v in named.items() if v})


@pytest.fixture(scope="module")
def texts():
    return data.read(env.DATA / "titles" / "validation.json").select(range(60))


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory, texts):
    """Makes the model of a family, once."""
    folder = tmp_path_factory.mktemp("families")
    env.quiet()

    def make(family):
        place = folder / family
        if not place.exists():
            cls, sizes, kind = FAMILIES[family]
            tokenizer = train_tokenizer(kind, texts["review"][:] + texts["title"][:])
            ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
            config = getattr(transformers, cls)(vocab_size=len(tokenizer), **sizes, **ids)
            kind = "MaskedLM" if family not in WRITERS else "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"
            torch.manual_seed(0)
            getattr(transformers, f"AutoModelFor{kind}").from_config(config).save_pretrained(place)
            tokenizer.save_pretrained(place)
        return place

    return make


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_project_trains_and_predicts(family, method, family_folder, texts, tmp_path, monkeypatch):
    quick = dict(model=str(family_folder(family)), method=method)
    monkeypatch.chdir(tmp_path)
    if family in NO_PREFIX and method == "prefix":
        with pytest.raises(
            ValueError, match=r"cannot be trained by prefix tuning .* Possible: full, lora, qlora, ia3\."
        ):
            new.project("classification", "mine", **quick)
        assert not list(tmp_path.iterdir())
        return
    if family in WRITERS:
        texts.to_json(tmp_path / "mine.jsonl")
        given = dict(prompt="{review} Title?", answer="title", settings=QUICK_TO_WRITE | {"training.max_steps": 3})
        folder = new.project("generation", "mine", data="mine.jsonl", **quick, **given)
    else:
        lines = [json.dumps({"text": row["review"], "label": i % 3}) for i, row in enumerate(texts)]
        (tmp_path / "mine.jsonl").write_text("\n".join(lines))
        settings = QUICK | {"training.max_steps": 3}
        folder = new.project("classification", "mine", data="mine.jsonl", **quick, settings=settings)
    train = load(folder)
    train.main()
    assert train.place(train.read_config()) == str(family_folder(family))
    curve = record.load(folder / "runs" / "main.json")["curve"]
    assert len([row for row in curve if row.get("grad_norm", 0) > 0]) == 3
    config = train.read_config()
    before, after = (
        dict(train.load_model(config, trained).named_parameters()) for trained in (None, folder / "runs" / "main")
    )
    head = ("classifier", "score", "pooler")  # new, so trained in any case
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert [name for name in changed if not any(part in name for part in head)], "only the head was trained"
    predict = load(folder, "predict")
    monkeypatch.setattr(sys, "argv", ["predict.py", "--file", str(folder / "data/test.jsonl"), "--out", "said.jsonl"])
    predict.main()
    assert len((tmp_path / "said.jsonl").read_text().splitlines()) == 6
