"""A backbone by name, for commands that look at recipes: config and shapes only, never weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopeft.cli.console import notify
from autopeft.foreign import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from autopeft.spec import BackboneSpec

__all__ = ["config_of", "head_size", "spec_for"]


def config_of(model: str) -> PreTrainedConfig:
    """The configuration of a backbone; of a folder, `config.json` alone is enough.

    Raises:
        UsageError: there is no such model, or it has no usable configuration.
    """
    from autopeft.assets import ModelSource, load_config, quiet_libraries, resolve_model

    quiet_libraries()
    folder = local_path(model)
    if (folder / "config.json").is_file():
        return load_config(ModelSource(str(folder), None, "folder", None))
    return load_config(resolve_model(model, notify=notify))


def spec_for(model: str) -> BackboneSpec:
    """Shapes and sites of a backbone by name.

    Raises:
        UsageError: there is no such model, or no site map fits it.
    """
    from autopeft.backbones import spec_of

    return spec_of(config_of(model))


def head_size(config: PreTrainedConfig, num_labels: int) -> int:
    """Parameters of the classification head that `transformers` gives this backbone; 0 where it has none."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    from autopeft.assets import head_names
    from autopeft.backbones import on_meta

    classes = (AutoModelForSequenceClassification, AutoModelForImageClassification)
    for auto in classes:
        if type(config) in auto._model_mapping:
            config = type(config).from_dict({**config.to_dict(), "num_labels": num_labels})
            model = on_meta(config, auto)
            return sum(
                p.numel() for name in head_names(model) for p in model.get_submodule(name).parameters()
            )
    return 0
