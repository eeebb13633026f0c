"""What decides which tokens a tokenizer makes of a text, as a hash that names cached tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase

__all__ = ["fingerprint_of"]

# Settings of a tokenizer that say nothing of its tokens: where it came from, and what others see to.
_NOT_TOKENS = {"name_or_path", "is_local", "local_files_only", "verbose"}
_NOT_TOKENS |= {"chat_template", "model_max_length", "padding_side"}


def fingerprint_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what decides the tokens: vocabulary, rules, special tokens; not padding or truncation.

    It takes a third of a second for a vocabulary of 50,000, and is asked for where tokens are kept alone.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state: dict[str, Any] = json.loads(backend.to_str())
        state = {key: value for key, value in state.items() if key not in {"padding", "truncation"}}
    else:
        # One that is written in Python, whose vocabulary is not all that decides.
        files = {*getattr(type(tokenizer), "vocab_files_names", {})}
        options = getattr(tokenizer, "init_kwargs", {})
        parts = {
            name: value.serialized_model_proto()
            for name, value in vars(tokenizer).items()
            if callable(getattr(value, "serialized_model_proto", None))
        }
        state = {
            "class": type(tokenizer).__name__,
            "vocab": tokenizer.get_vocab(),
            # As `save_pretrained` does: what has been set since is what counts.
            "options": {
                name: _plain(getattr(tokenizer, name, value))
                for name, value in options.items()
                if name not in files | _NOT_TOKENS and not name.endswith("_file")
            },
            "added": _plain(getattr(tokenizer, "added_tokens_decoder", {})),
            # Byte pairs by rank: vocabularies can be alike whose merges have another order.
            "merges": _plain(getattr(tokenizer, "bpe_ranks", {})),
            "sentencepiece": {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
        }
    state["specials"] = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    state["inputs"] = list(tokenizer.model_input_names)
    state["truncation_side"] = tokenizer.truncation_side
    if getattr(tokenizer, "split_special_tokens", False):  # what Rust does not write down
        state["split_special_tokens"] = True
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A setting as JSON has it, the same in every process: of an object that is none, its class."""
    if isinstance(value, Mapping):
        return sorted(([repr(_plain(key)), _plain(held)] for key, held in value.items()), key=lambda p: p[0])
    if isinstance(value, set | frozenset):
        return sorted(repr(_plain(held)) for held in value)
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if isinstance(value, AddedToken | bytes):
        return repr(value)
    return value if isinstance(value, str | int | float | None) else type(value).__name__
