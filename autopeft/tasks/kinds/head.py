"""The head of a kind of task: what is added to a backbone, or nothing, and which backbones it is for.

It is asked in this order:

1. Before anything is loaded: `modality` says what its backbones read, `refused` which of them it is not for,
   and `check_weights` which weights.
2. `load_model` loads the backbone as `auto_class` with the changes of `config`, and a new head of
   `num_labels` outputs where it has one. `names_in` tells the kind of a model that somebody else has trained.
3. In each forward: `inputs` adds to a batch what the model reads beside it, `run` calls the model, and
   `logits_of` takes the logits from what it returns. `reads` says of which positions they are wanted, and
   `reading` narrows a forward to them. `each` goes through the heads where a model has several.
4. In exports: `peft_task_type` and `hub_pipeline`.

`names` are the names of the task's classes, empty for kinds without classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from autopeft.assets import ModelSource, load_model
from autopeft.backbones import on_meta

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec

__all__ = ["Head"]

T = TypeVar("T")


class Head:
    """See the top of this file. By default each row has one output for each class, which is read at one
    position.

    Attributes:
        kind: name of the kind of task that it is a part of, which is set when the kind is made.
        auto_class: the class of `transformers` that a backbone is loaded as.
        new_head: whether each task starts with a new head. `False` for a head that the backbone brings
            (language models), which is then left as it was trained.
        outputs: of the head, where these are not one for each class.
        problem: `problem_type` in the backbone's configuration.
        modality: what the backbones read: `text` or `vision` (see `BackboneSpec.modality`).
        pooled: whether the head reads one position of each row, so that the last layer may be computed for
            that position alone. Which position is found by trying.
        causal: whether a batch is rows of tokens and labels (B, L), each of which is predicted from those
            before it, so that what all rows begin with may be computed once.
        row_distribution: whether the logits of a row are those of one distribution over classes, or one
            number.
        probed: whether the head can start as a linear probe of the frozen features of rows, or of tokens that
            have a label.
        peft_task_type: `task_type` in the format of Hugging Face peft; `None`: by the model's class.
        hub_pipeline: `pipeline_tag` of a model card on the Hugging Face hub; `None`: the hub has none for it.
    """

    kind: str = ""
    auto_class: type[Any] = AutoModelForSequenceClassification
    new_head: ClassVar[bool] = True
    outputs: ClassVar[int | None] = None
    problem: ClassVar[str | None] = None
    modality: ClassVar[Literal["text", "vision"]] = "text"
    pooled: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    row_distribution: ClassVar[bool] = True
    probed: ClassVar[bool] = True
    peft_task_type: str | None = "SEQ_CLS"
    hub_pipeline: str | None = "text-classification"

    @property
    def one_state(self) -> bool:
        """Whether the head turns one hidden state of a row into all that it predicts of it, for which the
        mean of the row's states may stand."""
        return self.pooled and self.new_head

    # Loading
    # --------------------------------------------------------------------------------------------------

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """Why a backbone cannot be trained on tasks of this kind, and what can; `None` where it can.

        Args:
            model: its name.
        """
        return None

    def check_weights(self, source: ModelSource) -> None:
        """Look at a backbone's weights, and at what lies beside them, before any process loads them.

        Raises:
            UsageError: they lack what the kind takes from them, or cannot be used for it.
        """
        return

    def num_labels(self, names: Sequence[str]) -> int:
        """Outputs of the head: one for each class, or as many as `outputs` says."""
        return len(names) if self.outputs is None else self.outputs

    def config(self, names: Sequence[str]) -> dict[str, Any]:
        """What is set in the backbone's configuration before it is loaded, in this order; nothing for a head
        that the backbone brings."""
        if not self.new_head:
            return {}
        return {"num_labels": self.num_labels(names), "problem_type": self.problem}

    def names_in(self, config: Any) -> tuple[str, ...] | None:
        """Label names of a model whose configuration is this kind's, `None` for another kind's, and for a
        head that the backbone brings: a configuration does not say what is done with a backbone."""
        if not self.new_head:
            return None
        named = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
        for names in (named, ()):
            if all(getattr(config, key, None) == value for key, value in self.config(names).items()):
                return names
        return None

    def load_model(
        self,
        source: ModelSource | str,
        names: Sequence[str],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> PreTrainedModel:
        """The backbone with the head for this kind, which knows its labels by name; see
        `autopeft.assets.load_model`."""
        config = self.config(names)
        if names and self.num_labels(names) == len(names):
            ids = {name: index for index, name in enumerate(names)}
            config = {**config, "id2label": dict(enumerate(names)), "label2id": ids}
        return load_model(source, self.auto_class, config, seed=seed, dtype=dtype, new_head=self.new_head)

    def on_meta(self, config: PretrainedConfig, names: Sequence[str]) -> PreTrainedModel:
        """The backbone with the head, without memory for its weights.

        Args:
            config: the backbone's, which is changed.
        """
        for name, value in self.config(names).items():
            setattr(config, name, value)
        return on_meta(config, self.auto_class)

    def each(
        self, model: PreTrainedModel, data: T
    ) -> Iterator[tuple[AbstractContextManager[PreTrainedModel], T]]:
        """Each head of the model: what to enter for a model with that head, and its task.

        Args:
            data: an `EncodedTask`.
        """
        yield nullcontext(model), data

    # Forwards
    # --------------------------------------------------------------------------------------------------

    def inputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a forward takes beside the batch's own tensors, such as what a decoder reads.

        Args:
            model: that will run.
            batch: as `EncodedSplit.collate` made it, or some of its rows.

        Raises:
            UsageError: the model cannot make it.
        """
        return {}

    def run(self, model: torch.nn.Module, inputs: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (rows, …) of a batch.

        Args:
            inputs: of the model's forward.
            batch: as in `inputs`.
        """
        return self.logits_of(model(**inputs), batch)

    def logits_of(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (rows, …) in what a forward of a batch without labels returns."""
        logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
        return logits

    def reading(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """What is entered around each forward whose logits go to the loss or to the scorer; a kind may narrow
        there what the model computes, such as its head to the positions that carry loss. The logits are then
        of that form. Nothing is by default; checks of shortcuts compare forwards without it.

        Args:
            model, batch: as in `inputs`.
        """
        return nullcontext()

    def reads(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The positions (B, L) of what the model's last stack reads whose logits go to the loss or to the
        scorer; nothing else needs those of the others. `None`: all of them, or it is not known.

        Args:
            batch: as in `inputs`.
        """
        return None
