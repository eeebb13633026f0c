"""`autopeft.chat`: a conversation with a trained language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autopeft.arguments import takes
from autopeft.errors import UsageError
from autopeft.export.arguments import WRITES, ChatArguments
from autopeft.export.of_task import meant
from autopeft.export.trained import Trained, on_backbone, trained
from autopeft.tasks.kinds.generation import longest_prompt
from autopeft.tasks.kinds.language_model import UNKNOWN
from autopeft.training import predict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from autopeft.hybrid import Hybrid
    from autopeft.tasks import TaskKind
    from autopeft.tasks.kinds import Generation

__all__ = ["Chat", "chat"]

Message = dict[str, str]
_FEWEST = 4  # tokens that rows can be cut to


class Chat:
    """A conversation with a trained language model; `chat` begins one.

    Attributes:
        messages: what was said so far, `{"role": …, "content": …}`.
        dropped: the number of turns that the model does not read any more.
    """

    def __init__(
        self,
        kind: TaskKind,
        hybrid: Hybrid,
        tokenizer: PreTrainedTokenizerBase,
        how: Generation,
        *,
        max_length: int,
        system: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._kind, self._hybrid, self._tokenizer, self._how = kind, hybrid, tokenizer, how
        self._notify = notify or (lambda line: None)
        # What the model reads beside its answer: what is longer would be cut without regard to turns.
        most = longest_prompt(hybrid.model, how.max_new_tokens or UNKNOWN)
        self._max_length = max_length if most is None else min(max_length, max(most, _FEWEST))
        self._begin: list[Message] = [] if not system else [{"role": "system", "content": system}]
        self.messages: list[Message] = []
        self.dropped = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was said, but not the system's message."""
        self.messages, self.dropped = list(self._begin), 0

    def say(self, text: str, told: Callable[[str], None] | None = None) -> str:
        """The model's answer to a text, given what was said before.

        The oldest turns are dropped where the conversation is longer than the model reads beside its answer.
        An answer that is cut off by Ctrl-C stays as far as it was written.

        Args:
            told: is given the answer piece by piece, as it is written.

        Raises:
            UsageError: the text is empty or not Unicode, or the conversation cannot be rendered.
            KeyboardInterrupt: the answer was cut off.
        """
        if not text.strip() or text != text.encode("utf-8", "replace").decode("utf-8"):
            raise UsageError(f"A message is a text that is not empty, but got {text!r:.80}.")
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []

        def heard(piece: str) -> None:
            pieces.append(piece)
            if told is not None:
                told(piece)

        answer: str | None = None
        try:
            self._shorten()
            answer = self._answer(heard)
        finally:
            if answer is None:
                answer = "".join(pieces).strip()
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:  # a turn that nobody answered is none
                self.messages.pop()
        return answer

    def _answer(self, told: Callable[[str], None]) -> str:
        rows = self._kind.schema.asked_row(self.messages)
        encoded = self._kind.encoder.encode(
            rows, self._tokenizer, self._max_length, labelled=False, cached=False
        )
        self._hybrid.require_attached()
        (output,) = predict(self._hybrid.model, encoded, generation=self._how, told=told)
        return str(self._kind.scorer.present(output, ())["answer"])

    def _shorten(self) -> None:
        """Drop the oldest turns, as far as the rest does not fit; the last message may still be cut."""
        first = len(self._begin)

        def too_long() -> bool:
            rows = self._kind.schema.asked_row(self.messages)
            return (self._kind.encoder.truncated(rows, self._tokenizer, self._max_length) or 0) > 0

        gone = 0
        while too_long():
            if len(self.messages) - first < 3:
                self._notify(
                    f"The message is cut: the model reads {self._max_length} tokens beside its answer."
                )
                break
            del self.messages[first : first + 2]
            gone += 1
        if gone:
            self.dropped += gone
            turns = "turn was" if gone == 1 else f"{gone} turns were"
            self._notify(
                f"The oldest {turns} dropped: the model reads {self._max_length} tokens beside its answer."
            )


@takes(ChatArguments)
def chat(run: Trained, given: ChatArguments) -> Chat:
    """Begin a conversation with a trained language model, by its tokenizer's chat template where it has one.

    Args:
        run: a run's name or folder, `latest`, an exported folder, what `autopeft.search` or `autopeft.train`
            returned, or a live `Hybrid`.
        {arguments}

    Raises:
        UsageError: there is no such hybrid, or it writes no texts.

    Example:
        >>> talk = autopeft.chat("latest", system="Be brief.")             # doctest: +SKIP
        >>> talk.say("Which months have 30 days?")                         # doctest: +SKIP
    """
    with meant(run, given) as known:
        return _begin(known, given)


def _begin(run: Trained, given: ChatArguments) -> Chat:
    known = trained(run, tokenizer=given.tokenizer)
    how = known.kind.scorer.generation(known.use, **{name: getattr(given, name) for name in WRITES})
    if how is None:
        names = ", ".join(member.name for member in getattr(known.kind.schema, "members", ()))
        if names:
            raise UsageError(f"The hybrid is for several tasks ({names}): name one with --task (task=…).")
        raise UsageError(f"Models for {known.kind.plain} write no texts, so that nobody can talk with them.")
    if not known.kind.schema.turns:
        if given.system is not None:
            raise UsageError(
                f"Models for {known.kind.plain} read one text at a time and nothing before it; leave out "
                "system (--system)."
            )
        if given.notify is not None:
            given.notify("Each message is answered by itself: the model reads one text at a time.")
    hybrid, tokenizer = known.load(**on_backbone(given))
    longest = given.max_length or known.longest(tokenizer)
    if longest > tokenizer.model_max_length:
        raise UsageError(
            f"max_length is at most {tokenizer.model_max_length:,} for this model, but got {longest:,}."
        )
    return Chat(
        known.kind,
        hybrid,
        tokenizer,
        how,
        max_length=longest,
        system=given.system,
        notify=given.notify,
    )
