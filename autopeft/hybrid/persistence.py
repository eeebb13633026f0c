"""`save_pretrained` and `load_state_dict` of a model with a hybrid: hybrid and head, not the backbone.

`transformers.Trainer` keeps and resumes a model by `save_pretrained` and `load_state_dict`. With a hybrid
attached the first writes, beside the files of `autopeft.hybrid.store`, `model.safetensors`: what trains, in
the form in which it trains (a prefix with its MLP), by its names in the model. The second takes that file
without missing the backbone.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from autopeft.assets import model_name
from autopeft.assets.heads import plain_options
from autopeft.errors import DataError, UsageError
from autopeft.graph import build_graph
from autopeft.hybrid.modules import ROOT, head_of
from autopeft.hybrid.store import save
from autopeft.runs.files import write_atomic
from autopeft.runs.markdown import plain

__all__ = ["TRAINING_WEIGHTS", "Persistence"]

TRAINING_WEIGHTS = "model.safetensors"  # the name by which the Trainer knows that a folder is a checkpoint
_MARK = {"format": "pt", ROOT: "hybrid"}
_OF_A_MODEL = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # with any of these a folder is read as a whole model
_UPLOAD = ("token", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
# Wrappers lie in each other, in any order: DDP around compiled FSDP has three prefixes.
_WRAPPERS = re.compile(
    r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module)\.)+|(?<=\.)(?:(?:_orig_mod|_fsdp_wrapped_module)\.)+"
)


@dataclass(eq=False)
class Persistence:
    """How an attached model is saved and loaded, from `install` to `remove`.

    Everything is found on the model, so that copies and pickles of it are saved in the same way.

    Attributes:
        model: what the hybrid is on.
        reloaded: called after values were loaded; copies of the model have none.
    """

    model: PreTrainedModel
    reloaded: Callable[[], None] | None
    _before: Callable[..., Any] | None = field(default=None, init=False)
    _handles: list[RemovableHandle] = field(default_factory=list, init=False)
    _prefix: str | None = field(default=None, init=False)

    def install(self) -> None:
        """Put `save_pretrained` and the two hooks of `load_state_dict` on the model."""
        self._before = self.model.__dict__.get("save_pretrained")
        self.model.__dict__["save_pretrained"] = self.save_pretrained
        self._handles = [
            self.model.register_load_state_dict_pre_hook(self.before_load),
            self.model.register_load_state_dict_post_hook(self.after_load),
        ]

    def remove(self) -> None:
        """Take them off; a `save_pretrained` of the model's own is as it was."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.model.__dict__.pop("save_pretrained", None)
        if self._before is not None:
            self.model.__dict__["save_pretrained"] = self._before

    def __getstate__(self) -> dict[str, Any]:
        # The handles go along: a copy of the whole hybrid is taken off its model like any other.
        return {**self.__dict__, "reloaded": None}

    # Saving
    # -------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Save the hybrid and the task head, in place of `PreTrainedModel.save_pretrained`.

        `autopeft.load(model, folder)` and the Trainer's `resume_from_checkpoint` take the folder. The whole
        model is saved after `hybrid.merge()`.

        Args:
            save_directory: where; made if needed. The files of a whole model in it are left alone, with a
                warning.
            is_main_process: other processes write nothing.
            state_dict: the tensors to save, gathered from elsewhere; default: the model's.
            push_to_hub: upload the folder too, as `repo_id=…` or under the folder's name.
            options: of the upload (`repo_id`, `token`, `commit_message` …); those that only whole models
                have, such as `max_shard_size`, change nothing.

        Raises:
            UsageError: `save_directory` is a file.
        """
        given = None if state_dict is None else {_WRAPPERS.sub("", k): v for k, v in state_dict.items()}
        without = given is not None and not self._own_names() <= set(given)
        if without or options.get("distributed_checkpoint"):
            warnings.warn(
                f"{save_directory} gets the tensors that you named, from which a reload does not bring back "
                "the hybrid; save_pretrained(folder) without state_dict and distributed_checkpoint does.",
                stacklevel=2,
            )
            plain: Any = self._before or partial(type(self.model).save_pretrained, self.model)
            plain(save_directory, is_main_process, state_dict, push_to_hub, **options)
            return
        if not is_main_process:
            return
        folder = Path(save_directory)
        if folder.is_file():
            raise UsageError(f"{folder} is a file; name a folder.")
        own = self._own_names()
        others = [n for n, p in self.model.named_parameters() if p.requires_grad and n not in own]
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            warnings.warn(
                f"{', '.join(others[:3])}{more} train, but belong neither to the hybrid nor to the "
                "task head, and are not saved; save them yourself, or freeze them.",
                stacklevel=2,
            )
        self._write(folder, given)
        if push_to_hub:
            upload = {name: options[name] for name in _UPLOAD if name in options}
            cast(Any, self.model).push_to_hub(options.get("repo_id") or folder.name, **upload)

    def _write(self, folder: Path, given: Mapping[str, Tensor] | None) -> None:
        root: Any = self.model._modules[ROOT]
        if given is not None:
            root = copy.deepcopy(root)
            start = f"{ROOT}."
            root.load_state_dict({k.removeprefix(start): v for k, v in given.items() if k.startswith(start)})
        head = head_of(self.model)
        values: Mapping[str, Any] = head if given is None else {name: given[name] for name in head}
        save(folder, self.model, build_graph(root.recipe, root.spec), dict(root.named_children()), values)
        whole = _whole_model(folder)
        if whole is not None:
            warnings.warn(
                f"{folder} holds a whole model ({whole}), which is left alone: from_pretrained() reads it "
                f"without the hybrid, and the Trainer does not resume from here. autopeft.load(model, "
                f"{str(folder)!r}) reads the hybrid; save to a folder of its own to have both.",
                stacklevel=3,
            )
            return
        state = {**{f"{ROOT}.{k}": v for k, v in root.state_dict().items()}, **values}
        copied = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
        write_atomic(folder / TRAINING_WEIGHTS, to_bytes(copied, metadata=_MARK))
        if not (folder / "README.md").exists():
            write_atomic(folder / "README.md", _readme(self.model))

    def _own_names(self) -> set[str]:
        """The names in the model of everything that is saved."""
        root: Any = self.model._modules[ROOT]
        return {f"{ROOT}.{name}" for name in root.state_dict()} | set(head_of(self.model))

    # Loading
    # ------------------------------------------------------------------------------------------------

    def before_load(
        self, model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *others: Any
    ) -> None:
        """Compare what `save_pretrained` wrote with what is attached, before anything is copied.

        Raises:
            DataError: it belongs to another recipe, backbone or head.
        """
        self._prefix = None
        start = f"{prefix}{ROOT}."
        names = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if not any(k.startswith(start) for k in state_dict) and names.keys() != self._own_names():
            return
        there = model.state_dict()
        backbone = {k for k in there if not k.startswith(f"{ROOT}.")} - set(head_of(self.model))
        if names.keys() & backbone:
            return  # a whole state dict, which torch compares
        self._prefix = prefix
        wrong = [
            f"{k}: {_form(names.get(k))} in the file, {_form(there.get(k))} in the model"
            for k in sorted(names.keys() | self._own_names())
            if _form(names.get(k)) != _form(there.get(k))
        ]
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise DataError(
                f"This checkpoint does not belong to the hybrid on this model: {'; '.join(wrong[:3])}{more}. "
                "Attach the recipe.yaml beside it to its backbone with as many labels, by attach(): load() "
                "attaches what inference needs, with which a training cannot always go on."
            )

    def after_load(self, model: nn.Module, keys: Any) -> None:
        """Do not count the backbone as missing from what `save_pretrained` wrote."""
        if self._prefix is not None:
            keys.missing_keys[:] = [k for k in keys.missing_keys if not k.startswith(self._prefix)]
        if self.reloaded is not None and not any(f"{ROOT}." in k for k in keys.missing_keys):
            self.reloaded()
        self._prefix = None


def _form(value: Tensor | None) -> str:
    """The shape, and the type where it is no floating-point one: those are converted."""
    if value is None:
        return "missing"
    shape = str(tuple(value.shape))
    return shape if value.is_floating_point() else f"{shape} of {value.dtype}"


def _whole_model(folder: Path) -> str | None:
    """The file that makes a folder a whole model's, if one does."""
    for name in _OF_A_MODEL:
        if not (folder / name).is_file():
            continue
        if name != TRAINING_WEIGHTS:
            return name
        try:
            with safe_open(folder / name, framework="pt") as handle:
                ours = (handle.metadata() or {}).get(ROOT) == _MARK[ROOT]
        except (SafetensorError, OSError):
            ours = False
        if not ours:
            return name
    return None


def _readme(model: PreTrainedModel) -> str:
    """The folder's README: what is in it, and how to load it."""
    name = model_name(getattr(model.config, "_name_or_path", "")) or "the backbone"
    kind = type(model).__name__
    options = plain_options(model, labels=kind.endswith("Classification"))
    lines = [
        "# A hybrid and its task head",
        "",
        f"The weights of the backbone {plain(name)} are not here; `recipe.yaml` says what is.",
        "`from_pretrained` cannot read this folder. Read it with AutoPEFT:",
        "",
        "```python",
        "import autopeft",
        f"from transformers import {kind}",
        "",
        f"model = {kind}.from_pretrained({json.dumps(name)}{options})",
        'hybrid = autopeft.load(model, ".")',
        "```",
        "",
        "`autopeft export` turns it into a folder for `autopeft predict` and, where it can be said, for",
        "Hugging Face peft. `Trainer.train(resume_from_checkpoint=…)` reads `model.safetensors`, which holds",
        "what trains in the form in which it trains; `weights.safetensors` is what inference needs.",
        "",
    ]
    return "\n".join(lines)
