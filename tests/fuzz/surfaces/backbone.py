"""The `config.json` of a backbone in a folder: shapes, counts and head sizes without weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from transformers import BertConfig, GPT2Config, LlamaConfig, RobertaConfig, T5Config, ViTConfig

from autopeft.backbones import spec_of
from autopeft.cli.backbone import config_of, head_size
from autopeft.counting import count
from autopeft.recipe import Recipe

from .. import mutate
from ..folders import json_bytes
from ..surface import Call, First

SHARE = 0.25

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@cache
def _valid() -> tuple[dict[str, Any], ...]:
    configs = (
        BertConfig(vocab_size=20, **_SMALL),
        RobertaConfig(vocab_size=20, **_SMALL),
        GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2),
        LlamaConfig(vocab_size=20, num_key_value_heads=1, **_SMALL),
        T5Config(vocab_size=20, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8),
        ViTConfig(image_size=32, **_SMALL),
    )
    return tuple(json.loads(config.to_json_string(use_diff=False)) for config in configs)


def use(folder: str) -> None:
    """What `count` and `show` do with a backbone."""
    config = config_of(folder)
    spec = spec_of(config)
    head_size(config, 2)
    count(Recipe.from_dict({"layers": [{"attach": [{"lora": {"rank": 2}}]}]}), spec)


def hostile(random: Random, folder: Path) -> Call:
    (folder / "model").mkdir()
    config = mutate.tree(random, random.choice(_valid()), most=2)
    content = json_bytes(config)
    if random.random() < 0.3:
        content = mutate.text(
            random, content.decode("utf-8", "replace"), tokens=('"num_hidden_layers": 3, ',)
        )
    (folder / "model" / "config.json").write_bytes(content)
    return lambda: use("model")


def _of(number: int, **changes: Any) -> First:
    def write(folder: Path) -> Call:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps({**_valid()[number], **changes}))
        return lambda: use("model")

    return write


def _text(content: str) -> First:
    def write(folder: Path) -> Call:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_bytes(mutate.bytes_of(content))
        return lambda: use("model")

    return write


FIRST: dict[str, First] = {
    "100,000 layers": _of(0, num_hidden_layers=100_000),
    "100,000 layers of a decoder": _of(2, n_layer=100_000),
    "100,000 layers of an encoder-decoder": _of(4, num_layers=100_000),
    "a hidden size of 10^9": _of(0, hidden_size=10**9),
    "a feed-forward width of 10^18": _of(3, intermediate_size=10**18),
    "a vocabulary of 10^12": _of(1, vocab_size=10**12),
    "10^9 positions": _of(0, max_position_embeddings=10**9),
    "an image of 10^6 pixels a side": _of(5, image_size=10**6),
    "10^7 labels by name": _of(0, id2label={str(i): str(i) for i in range(100_000)}),
    "no heads": _of(0, num_attention_heads=0),
    "no layers": _of(0, num_hidden_layers=0),
    "code of its own": _of(0, auto_map={"AutoConfig": "fuzz_canary.Thing", "AutoModel": "fuzz_canary.Thing"}),
    "code of its own and no family": _text('{"auto_map": {"AutoConfig": "fuzz_canary.Thing"}}'),
    "null": _text("null"),
    "a list": _text("[]"),
    "brackets": _text("[" * 100000),
    "nothing": _text(""),
    "half a letter": _text('{"model_type": "\\ud800"}'),
    "a family of 100,000 letters": _text('{"model_type": "' + "a" * 100000 + '"}'),
}
