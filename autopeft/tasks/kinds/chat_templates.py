"""Chat templates: strangers' programs in Jinja that write conversations.

Their length is bounded, and the time and memory that they take (see `bounded_jinja`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from autopeft.errors import UsageError
from autopeft.tasks.kinds.bounded_jinja import render
from autopeft.tasks.kinds.conversations import Conversation

__all__ = ["ChatTemplate", "TurnEnd", "template_of", "turn_end"]

_LONGEST_TEMPLATE = 1 << 17  # letters; those of public models have up to 20,000
_MOST_WRITTEN, _FOR_A_LETTER = 1 << 17, 20
_QUESTION, _ANSWER = "Hello", "Hello, you"


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template of a tokenizer, `None` where it has none.

    Raises:
        UsageError: it has several and none is the default, or it is too long.
    """
    if not tokenizer.chat_template:
        return None
    name = f"The tokenizer of {tokenizer.name_or_path!r:.300}"
    try:
        found = tokenizer.get_chat_template()
    except ValueError as error:
        raise UsageError(f"{name} has chat templates of which none is called 'default'.") from error
    if len(found) > _LONGEST_TEMPLATE:
        raise UsageError(
            f"{name} has a chat template of {len(found):,} letters; up to {_LONGEST_TEMPLATE:,} are read."
        )
    return found


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template at work on one row."""

    tokenizer: PreTrainedTokenizerBase
    text: str

    def render(self, messages: Conversation, *, prompt: bool) -> str:
        """What it writes, with the beginning of an answer where a `prompt` is wanted.

        Raises:
            UsageError: it fails, takes too much time or memory, or writes far more than it was given.
        """
        given = sum(len(message["content"]) for message in messages)
        try:
            return render(
                self.text,
                _MOST_WRITTEN + _FOR_A_LETTER * given,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **self.tokenizer.special_tokens_map,
            )
        # A stranger's program fails in whatever way it likes.
        except Exception as error:
            raise self.refused(
                messages, next(iter(str(error).strip().splitlines()), type(error).__name__)
            ) from error

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
        text = _behind(ChatTemplate(tokenizer, template))
        made = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        if made and (made[0] in special or len(made) == 1):
            tokens[int(made[0])] = None
            text = None
    return TurnEnd(tuple(tokens), text or None)


def _behind(template: ChatTemplate) -> str:
    """What a template writes behind an answer, without white space around it; empty where that cannot be told
    from the answer."""
    asked = [{"role": "user", "content": _QUESTION}]
    try:
        before = template.render(asked, prompt=True)
        whole = template.render([*asked, {"role": "assistant", "content": _ANSWER}], prompt=False)
    except UsageError:  # it wants other conversations than this one
        return ""
    answer = whole.removeprefix(before).strip()
    return answer.removeprefix(_ANSWER).strip() if answer.startswith(_ANSWER) else ""
