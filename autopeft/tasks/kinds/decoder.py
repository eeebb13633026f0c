"""What kinds of tasks have in common whose model is a decoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import AutoModelForCausalLM

from autopeft.tasks.kinds.language_model import LanguageModel

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec

__all__ = ["Decoder"]


class Decoder(LanguageModel):
    """A kind for decoders, which read prompt and answer as one sequence."""

    auto_class = AutoModelForCausalLM
    peft_task_type = "CAUSAL_LM"

    def reads(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """See `LanguageModel.reads`. Labels may go on behind the tokens that are read: what stands there is
        predicted, and predicts nothing."""
        read = super().reads(batch)
        return None if read is None else read[:, : batch["input_ids"].shape[1]]

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """See `TaskKind.refused`: in layers that see both directions each token would see itself."""
        if all(stack.causal for stack in spec.stacks):
            return None
        if spec.encoder_decoder:
            return (
                f"{model!r} is an encoder-decoder, and {self.name} is for decoders: sources with targets are "
                "learnt by it with --kind seq2seq (kind='seq2seq'); or take a decoder such as smollm2-135m "
                "(--model)."
            )
        return (
            f"{model!r} is no language model: its layers see the tokens that are to be predicted. Take a "
            "decoder such as smollm2-135m (--model)."
        )
