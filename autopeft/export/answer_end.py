"""What ends an answer of an exported language model, for the programs that load or serve it.

A training learns what the chat template writes behind an answer. The backbone's own files may name another
end: base models come with the template of chats, and end a document with another token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autopeft.tasks.kinds.chat_templates import TurnEnd, turn_end
from autopeft.tasks.kinds.generative import own_ends

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AnswerEnd", "Program", "answer_end"]

Program = Literal["transformers", "vLLM", "llama.cpp"]


@dataclass(frozen=True)
class AnswerEnd:
    """What ends an answer, and what of it the model's generation configuration does not say.

    Attributes:
        whole: all that ends it.
        unsaid: the tokens among these that the configuration does not name.
        names: how the tokenizer writes them.
    """

    whole: TurnEnd
    unsaid: tuple[int, ...]
    names: tuple[str, ...]

    def notes(self, programs: Sequence[Program], *, named: bool = False) -> Iterator[str]:
        """Sentences that say what each of the programs has to be told.

        Args:
            named: whether the format brings a generation configuration that names the tokens.
        """
        if self.unsaid and not named:
            ends = " or ".join(f"{i} ({name})" for i, name in zip(self.unsaid, self.names, strict=True))
            tell = {
                "transformers": f"eos_token_id={list(self.whole.tokens)} to generate()",
                "vLLM": f'"stop_token_ids": {list(self.unsaid)} in each request to vLLM',
                # The template's comes last, and llama.cpp knows the tokenizer's.
                "llama.cpp": f"--override-kv tokenizer.ggml.eot_token_id=int:{self.unsaid[-1]} to llama.cpp",
            }
            yield (
                f"An answer ends with token {ends}, which the backbone's generation configuration does not "
                f"name: give {', and '.join(tell[program] for program in programs)}."
            )
        if self.whole.text is not None:
            text = json.dumps(self.whole.text, ensure_ascii=False)
            tell = {
                "transformers": f"stop_strings=[{text}] and the tokenizer to generate()",
                "vLLM": f'"stop": [{text}] in each request to vLLM',
                "llama.cpp": f"--reverse-prompt {text} to llama.cpp",
            }
            yield (
                f"An answer ends with the text {text}, which is no single token: give "
                f"{', and '.join(tell[program] for program in programs)}."
            )


def answer_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> AnswerEnd:
    """What ends an answer of a language model.

    Raises:
        UsageError: the chat template is refused (see `turn_end`).
    """
    own = own_ends(model)
    whole = turn_end(tokenizer, own)
    unsaid = tuple(token for token in whole.tokens if token not in own)
    return AnswerEnd(whole, unsaid, tuple(map(str, tokenizer.convert_ids_to_tokens(list(unsaid)))))
