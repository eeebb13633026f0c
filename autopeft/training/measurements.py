"""What methods measured before training (Fisher rankings and the like), kept on disk for later trials."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.assets import backbone_fingerprint, cache_folder, head_names, make_room, warn_once
from autopeft.errors import AssetError
from autopeft.tasks.encode import EncodedTask
from autopeft.training.distributed import team_of
from autopeft.training.plan import TrainingPlan

__all__ = ["KeptMeasurements"]

_LIMIT = 1 << 30
_FORMAT, _SUM = 2, "sha256"
_log = logging.getLogger("autopeft")


class KeptMeasurements:
    """Measurements on one backbone, head, data and seed (unless none is drawn from: `seeded=False`), in files
    named by all that they depend on.

    Trouble with the disk is logged, and costs no more than measuring again.
    """

    def __init__(
        self, model: nn.Module, data: EncodedTask, plan: TrainingPlan, *, seeded: bool = True
    ) -> None:
        self.identity: dict[str, Any] | None = None
        self.batch_size, self.team = plan.batch_size, team_of(model)
        if not isinstance(model, PreTrainedModel) or data.train.labels is None or not plan.shortcuts:
            return
        # The loss of a kind from another package may change unseen.
        if not data.task.task_kind.built_in:
            return
        self.identity = {
            "format": _FORMAT,
            "backbone": self.team.backbone or backbone_fingerprint(model),
            "head": _digest(
                {
                    f"{head}.{name}": tensor
                    for head in head_names(model)
                    for name, tensor in model.get_submodule(head).state_dict().items()
                }
            ),
            "rows": data.train.fingerprint,
            "labels": data.train.labels_fingerprint,
            "loss": [data.task.kind, data.task.class_weights],
            "seed": plan.seed if seeded else None,
            "device": plan.torch_device().type,
            "versions": [torch.__version__, transformers.__version__],
        }

    def get(self, method: str, measurement: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """What was measured before, or `None`; the same in all processes of a training."""
        file, found = self._file(method, measurement), None
        try:
            if file is not None and file.is_file() and file.stat().st_size <= _LIMIT:
                with suppress(OSError):  # a cache that cannot be written
                    os.utime(file)
                with safe_open(file, framework="pt") as kept:
                    digest = (kept.metadata() or {}).get(_SUM)
                found = load_file(file)
                if _digest(found) != digest:
                    _log.warning("the kept measurement %s is damaged and is made anew", file)
                    found = None
        except (OSError, SafetensorError) as error:
            _log.warning("a kept measurement cannot be read and is made anew: %s", error)
        return self.team.first(found)

    def put(self, method: str, measurement: Mapping[str, Any], measured: Mapping[str, Tensor]) -> None:
        """Keep what was measured."""
        file = self._file(method, measurement)
        size = sum(t.numel() * t.element_size() for t in measured.values())
        if file is None:
            return
        try:
            if not make_room(file.parent, size, _LIMIT):
                return
            handle, scratch = tempfile.mkstemp(prefix=".new-", dir=file.parent)
            os.close(handle)
            try:
                tensors = {k: v.detach().cpu().contiguous() for k, v in measured.items()}
                save_file(tensors, scratch, metadata={_SUM: _digest(tensors)})
                os.replace(scratch, file)
            finally:
                Path(scratch).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            warn_once(f"A measurement is not kept, and is made each time: {error}")

    def _file(self, method: str, measurement: Mapping[str, Any]) -> Path | None:
        if self.identity is None:
            return None
        what: list[Any] = [self.identity, method, dict(measurement)]
        if measurement.get("calibration", {}).get("rows", 1) is None:
            what.append({"rows": self.batch_size})
        text = json.dumps(what, sort_keys=True)
        try:
            folder = cache_folder("measured")
        except AssetError as error:
            warn_once(f"Measurements are not kept, and are made each time: {error}")
            return None
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
