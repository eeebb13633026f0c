"""Chat templates of tokenizers, which transformers renders in Jinja's sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from autopeft.errors import UsageError
from autopeft.tasks.kinds.conversations import Conversation

__all__ = ["ChatTemplate", "TurnEnd", "template_of", "turn_end"]

_QUESTION, _ANSWER = "Hello", "Hello, you"


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template of a tokenizer, `None` where it has none.

    Raises:
        UsageError: it has several and none is the default.
    """
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        name = f"The tokenizer of {tokenizer.name_or_path!r:.300}"
        raise UsageError(f"{name} has chat templates of which none is called 'default'.") from error


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template at work on one row."""

    tokenizer: PreTrainedTokenizerBase
    text: str

    def render(self, messages: Conversation, *, prompt: bool) -> str:
        """What it writes, with the beginning of an answer where a `prompt` is wanted.

        Raises:
            UsageError: it fails.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=self.text, tokenize=False, add_generation_prompt=prompt
                )
            )
        # A template is a program, which may raise anything.
        except Exception as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise self.refused(messages, why) from error

    def refused(self, messages: Conversation, why: str) -> UsageError:
        """The error that says why a conversation cannot be rendered."""
        return UsageError(
            f"The chat template of {self.tokenizer.name_or_path!r:.300} cannot render the conversation that "
            f"begins with {messages[0]['content']!r:.60}: {why}. Change the row, or take a model with "
            "another template (--model)."
        )


@dataclass(frozen=True)
class TurnEnd:
    """What ends an answer.

    Attributes:
        tokens: any of which ends it.
        text: what a template writes behind an answer where no token says that; `None` for nothing.
    """

    tokens: tuple[int, ...]
    text: str | None = None


def turn_end(tokenizer: PreTrainedTokenizerBase, more: Sequence[int] = ()) -> TurnEnd:
    """What ends an answer of a model: the tokenizer's end token, `more` tokens (those that the model's own
    generation configuration names), and what the chat template writes behind an answer.

    Raises:
        UsageError: the template is refused (see `template_of`).
    """
    tokens = dict.fromkeys(int(token) for token in (tokenizer.eos_token_id, *more) if token is not None)
    template = template_of(tokenizer)
    text: str | None = None
    if template is not None:
        # What it writes behind an answer, without white space around it; nothing where that cannot be told
        # from the answer, and where it wants other conversations than this one.
        chat = ChatTemplate(tokenizer, template)
        question = [{"role": "user", "content": _QUESTION}]
        text = ""
        with suppress(UsageError):
            before = chat.render(question, prompt=True)
            whole = chat.render([*question, {"role": "assistant", "content": _ANSWER}], prompt=False)
            answer = whole.removeprefix(before).strip()
            text = answer.removeprefix(_ANSWER).strip() if answer.startswith(_ANSWER) else ""
        made = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        if made and (made[0] in special or len(made) == 1):
            tokens[int(made[0])] = None
            text = None
    return TurnEnd(tuple(tokens), text or None)
