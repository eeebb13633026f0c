"""Folders of models, as `--model FOLDER` names them: configuration, tokenizer and weights, looked at and
trained for a step."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from support.gguf_models import as_gguf
from support.language import save_decoder
from support.saved_model import save_backbone, write_reviews
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaForCausalLM

from .. import mutate
from ..canary import MODULE, PICKLE
from ..folders import Edit, Files, Move, cut, edit, linked, nested, piped, put, read, replace, told, write
from ..products import command
from ..surface import Call, First
from ..weights import changed_header

SHARE = 0.2

_FOLDER = "model"
_RECIPE = b"autopeft: 2\nname: small\nlayers:\n- attach: [{lora: {rank: 2}}]\n"
_WORDS = ("-t", "reviews.csv", "--text", "body", "--label", "verdict", "--steps", "1", "--batch-size", "4")
# Files that transformers reads of a folder where they are there.
_MORE: dict[str, Any] = {
    "special_tokens_map.json": {"pad_token": "[PAD]", "cls_token": {"content": "[CLS]", "lstrip": False}},
    "added_tokens.json": {"[NEW]": 15},
    "generation_config.json": {"max_length": 20, "pad_token_id": 0},
    "preprocessor_config.json": {"size": 224},
}


@cache
def _valid() -> tuple[Files, ...]:
    """An encoder and a decoder with their tokenizer, and the encoder in two files."""
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = read(save_backbone(Path(place, "encoder"), hidden_size=16, num_hidden_layers=2))
        words = len(json.loads(encoder["tokenizer.json"])["model"]["vocab"])
        sizes = GPT2Config(vocab_size=words, n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0)
        GPT2ForSequenceClassification(sizes).save_pretrained(Path(place, "decoder"))
        return encoder, {**encoder, **read(Path(place, "decoder"))}, _in_shards(encoder)


def _in_shards(files: Files) -> Files:
    """The same model with an index that names the file of each tensor."""
    names: list[str] = []
    changed_header(files["model.safetensors"], lambda header: names.extend(set(header) - {"__metadata__"}))
    index = {"metadata": {}, "weight_map": dict.fromkeys(sorted(names), "model-00001-of-00001.safetensors")}
    found = {**files, "model.safetensors.index.json": json.dumps(index).encode()}
    found["model-00001-of-00001.safetensors"] = found.pop("model.safetensors")
    return found


@cache
def _reviews() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        return write_reviews(Path(place, "reviews.csv"), rows=40).read_bytes()


@cache
def _gguf() -> bytes:
    """A decoder as llama.cpp has it."""
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM.from_pretrained(save_decoder(Path(place, "decoder")))
        as_gguf(model, Path(place, "model.gguf"))
        return Path(place, "model.gguf").read_bytes()


def _asked(name: str) -> Call:
    return lambda: command("show", "lora.yaml", "--model", name)


def use() -> None:
    """What is done with a model that somebody sent."""
    command("show", "lora.yaml", "--model", _FOLDER)
    json.loads(command("train", "-r", "lora.yaml", "-m", _FOLDER, *_WORDS, "-o", "out", "--json"))


def hostile(random: Random, folder: Path) -> Call:
    files = dict(random.choice(_valid()))
    if random.random() < 0.1:
        files["model.gguf"] = mutate.data(random, _gguf())
        for name in random.sample(["config.json", "tokenizer.json"], random.randrange(2)):
            del files[name]
    if random.random() < 0.2:
        name = random.choice(sorted(_MORE))
        files[name] = mutate.bytes_of(json.dumps(_MORE[name]))
    for name in random.sample(sorted(files), random.choice((1, 1, 2))):
        edit(random, files, name)
    _write(folder, files)
    if random.random() < 0.1:
        place = random.choice((*sorted(files), "tokenizer.model", "vocab.txt", "chat_template.jinja"))
        replace(random, folder / _FOLDER / place, "reviews.csv")
    return use


def _write(folder: Path, files: Files) -> None:
    (folder / _FOLDER).mkdir()
    write(folder / _FOLDER, files)
    write(folder, {"lora.yaml": _RECIPE, "reviews.csv": _reviews()})


# First cases
# ----------------------------------------------------------------------------------------------------------


def _with(change: Edit | None = None, *, number: int = 0, also: Move | None = None) -> First:
    def made(folder: Path) -> Call:
        files = dict(_valid()[number])
        if change is not None:
            change(files)
        _write(folder, files)
        if also is not None:
            also(folder / _FOLDER)
        return use

    return made


def _config(**values: Any) -> Edit:
    return told("config.json", lambda found: found.update(values))


def _tokenizer(**values: Any) -> Edit:
    return told("tokenizer.json", lambda found: found.update(values))


def _words(**values: Any) -> Edit:
    return told("tokenizer.json", lambda found: found["model"].update(values))


def _told_of_it(**values: Any) -> Edit:
    return told("tokenizer_config.json", lambda found: found.update(values))


def _added(**values: Any) -> Edit:
    """One word more, beside the vocabulary."""
    word = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return told(
        "tokenizer.json",
        lambda found: found["added_tokens"].append({"id": 15, "content": "film", **word, **values}),
    )


def _replacing(pattern: str, content: str) -> Edit:
    return _tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": pattern}, "content": content})


def _padded(strategy: Any) -> Edit:
    about = {
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    return _tokenizer(padding={"strategy": strategy, **about})


def _one_by_one(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "other.json")
    (folder / "tokenizer.json").symlink_to("other.json")


_CODE = {
    "AutoConfig": f"{MODULE}.Thing",
    "AutoModel": f"{MODULE}.Thing",
    "AutoTokenizer": [f"{MODULE}.Thing", None],
}
_WRONG: dict[str, Edit] = {
    "code for its configuration": _config(auto_map=_CODE),
    "code for its configuration alone": put("config.json", json.dumps({"auto_map": _CODE}).encode()),
    "code for its tokenizer": _told_of_it(auto_map=_CODE),
    "a tokenizer class that is code": _told_of_it(tokenizer_class=f"{MODULE}.Thing"),
    "a template that is code": put("chat_template.jinja", b"{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "weights as a pickle beside": put("pytorch_model.bin", PICKLE),
    "weights as a pickle": put("model.safetensors", PICKLE),
    "weights that were cut": cut("model.safetensors", -40),
    "a vocabulary of 10^9 words": _config(vocab_size=10**9),
    "fewer words than the tokenizer has": _config(vocab_size=5),
    "10^8 positions": _config(max_position_embeddings=10**8),
    "no positions": _config(max_position_embeddings=0),
    "another family": _config(model_type="gpt2"),
    "a model of images": _config(model_type="vit", architectures=["ViTForImageClassification"]),
    "no hidden states": _config(hidden_size=0),
    "a dropout of 2": _config(hidden_dropout_prob=2.0),
    "an activation that is code": _config(hidden_act=f"{MODULE}.run"),
    "attention that is code": _config(
        _attn_implementation=f"{MODULE}/run", attn_implementation=f"{MODULE}/run"
    ),
    "weights in 4 bits": _config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "weights quantized by code": _config(quantization_config={"quant_method": f"{MODULE}.Thing"}),
    "100,000 labels": _config(id2label={str(i): str(i) for i in range(100_000)}),
    "numbers that are texts": _config(layer_norm_eps="x", initializer_range="x"),
    "a spread below none": _config(initializer_range=-1.0),
    "a configuration of 90 lists": _config(x=nested(90, lambda found: [found])),
    "a configuration with escapes": _config(architectures=["\x1b[31mred"], model_type="\x1b]0;title\x07"),
    "a tokenizer of brackets": put("tokenizer.json", b"[" * 100_000),
    "a tokenizer that is null": put("tokenizer.json", b"null"),
    "a tokenizer without words": _words(vocab={}),
    "a word beyond the embeddings": _words(
        vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "film": 4_000}
    ),
    "a word at 2^32": _words(vocab={"[UNK]": 1, "film": 2**32 - 1}),
    "an added word beyond the embeddings": _added(id=4_000, content="zebra film"),
    "an added word at 2^31": _added(id=2**31, content="zebra"),
    "100,000 added words": told(
        "tokenizer.json",
        lambda found: found["added_tokens"].extend(
            {**found["added_tokens"][0], "id": 100 + i, "content": f"w{i}"} for i in range(100_000)
        ),
    ),
    "a pattern that takes for ever": _replacing("(a+)+$", ""),
    "a pattern that takes for ever in these rows": _replacing("(( *[a-z ]+)+)+$(?<=z)", ""),
    "a pattern that is none": _replacing("(", ""),
    "letters that become many": _replacing("[a-z]", "film " * 10_000),
    "rows padded to 10^9": _padded({"Fixed": 10**9}),
    "rows padded to 10^6": _padded({"Fixed": 10**6}),
    "rows cut to none": _tokenizer(
        truncation={"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0}
    ),
    "rows cut with a stride": _tokenizer(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 9}
    ),
    "ends that nothing knows": _tokenizer(
        post_processor={"type": "BertProcessing", "sep": ["[X]", 99_999], "cls": ["[Y]", 88_888]}
    ),
    "no padding token": told("tokenizer_config.json", lambda found: found.pop("pad_token")),
    "a padding token that is new": _told_of_it(pad_token="\x1b[31mnew"),
    "a padding token that is a list": _told_of_it(pad_token=["[PAD]"]),
    "a longest text of 0": _told_of_it(model_max_length=0),
    "a longest text that is a word": _told_of_it(model_max_length="long"),
    "inputs that no model takes": _told_of_it(model_input_names=["input_ids", "evil"]),
    "no inputs": _told_of_it(model_input_names=[]),
    "padding on a side that is none": _told_of_it(padding_side="up"),
    "an adapter of peft": put(
        "adapter_config.json", b'{"peft_type": "LORA", "base_model_name_or_path": "x/y"}'
    ),
    "a generation that is null": put("generation_config.json", b"null"),
}
_MOVED: dict[str, Move] = {
    "weights linked from outside": linked("model.safetensors", "../../outside/secret.csv"),
    "a configuration linked from outside": linked("config.json", "../../outside/secret.jsonl"),
    "a tokenizer linked from outside": linked("tokenizer.json", "../../outside/secret.jsonl"),
    "a tokenizer's configuration linked from outside": linked(
        "tokenizer_config.json", "../../outside/secret.jsonl"
    ),
    "a template linked from outside": linked("chat_template.jinja", "../../outside/secret.csv"),
    "weights that are a pipe": piped("model.safetensors"),
    "a configuration that is a pipe": piped("config.json"),
    "a tokenizer that is a pipe": piped("tokenizer.json"),
    "a tokenizer's configuration that is a pipe": piped("tokenizer_config.json"),
    "more words that are a pipe": piped("added_tokens.json"),
    "weights that are a device": linked("model.safetensors", "/dev/zero"),
    "a tokenizer that is a device": linked("tokenizer.json", "/dev/zero"),
    "a tokenizer's configuration that is a device": linked("tokenizer_config.json", "/dev/zero"),
    "a link that stays inside": _one_by_one,
}


def _gguf_alone(files: Files) -> None:
    files.clear()
    files["model.gguf"] = _gguf()


def _ggufs(folder: Path) -> Call:
    """A GGUF file by its name, where a folder is asked for."""
    write(folder, {"lora.yaml": _RECIPE, "model.gguf": _gguf()})
    return _asked("model.gguf")


FIRST: dict[str, First] = {
    "a GGUF file": _ggufs,
    "a GGUF file for the weights": _with(lambda files: files.update({"model.safetensors": _gguf()})),
    "a GGUF file in a folder": _with(_gguf_alone),
    **{f"valid {i}": _with(number=i) for i in range(3)},
    **{name: _with(change) for name, change in _WRONG.items()},
    **{name: _with(also=move) for name, move in _MOVED.items()},
    "shards elsewhere": _with(
        told(
            "model.safetensors.index.json",
            lambda found: found.update(weight_map=dict.fromkeys(found["weight_map"], "../reviews.csv")),
        ),
        number=2,
    ),
}
