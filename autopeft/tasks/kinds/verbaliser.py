"""What a verbaliser is told: a label word for each class, and the template that a row's texts are put in.

A language model reads the template with the texts in it, and says which label word is the most probable at
the mask (masked language models), or as the next token (Schick and Schütze 2021, arXiv:2001.07676, who call
the two a pattern and a verbaliser). Both come from strangers: options of a command, manifests of runs and of
saved hybrids. They are read by the small grammars below and never by `str.format`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from autopeft.errors import TaskError, near
from autopeft.tasks.kinds.task_kind import name_with_options
from autopeft.tasks.table import is_unicode, listed

__all__ = [
    "EXAMPLES",
    "FIELDS",
    "MASK",
    "LabelWords",
    "Template",
    "WordsData",
    "kind_with_words",
    "words_text",
]

WordsData: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""Label words as they are handed over: `bad,great` or `negative=bad,positive=great`, a list in the order of
the classes, or a word for each class by its name."""

MASK = "mask"
FIELDS = {"text": "text", "text_pair": "text_pair", "sentence1": "text", "sentence2": "text_pair"}
"""What may stand in braces, and which text of a row it is."""
EXAMPLES = {
    (True, False): "{text} It was {mask} .",
    (True, True): "{text} ? {mask} , {text_pair}",
    (False, False): "{text} It was",
    (False, True): "{text} {text_pair} Answer:",
}
"""The templates of those who name none, by whether the model is a masked one and whether rows are pairs of
texts. Those with a mask are of LM-BFF (Gao et al. 2021, arXiv:2012.15723, table 1)."""

_LONGEST_TEMPLATE, _LONGEST_WORD, _MOST_WORDS = 1_000, 60, 500
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_KIND = "classification"  # the kind that is told them
_ESCAPES = {"%": "%25", ",": "%2C", "=": "%3D"}  # what parts words, written inside of one


@dataclass(frozen=True)
class Template:
    """Literal texts and fields, in order.

    Attributes:
        parts: pairs of a field's name (`text`, `text_pair`, `mask`) and "", or of `None` and a literal text.
    """

    parts: tuple[tuple[str | None, str], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template: fields stand in braces, and `{{` and `}}` are braces.

        A template without a mask ends where the next token is predicted; spaces there are left out.

        Raises:
            TaskError: it is longer than 1,000 letters or cannot be printed, a field is unknown or stands
                there twice, a brace has no partner, or the text has no place.
        """
        if len(text) > _LONGEST_TEMPLATE:
            raise TaskError(
                f"A template has up to {_LONGEST_TEMPLATE:,} letters, but {text!r:.60}… has {len(text):,}."
            )
        _check_shown("A template", text)
        parts = list(_pieces(text))
        fields = [field for field, _ in parts if field is not None]
        again = [field for field in fields if fields.count(field) > 1]
        if again:
            what = "two masks, but one word is predicted" if again[0] == MASK else f"{{{again[0]}}} twice"
            raise TaskError(f"The template {text!r} has {what}; keep one of them.")
        if "text" not in fields:
            raise TaskError(
                f"The template {text!r} has no place for the text; write {{text}} there, as in {_EXAMPLE}."
            )
        if MASK not in fields and parts[-1][0] is None:
            parts[-1] = (None, parts[-1][1].rstrip(" "))
        return cls(tuple(part for part in parts if part != (None, "")))

    @property
    def masked(self) -> bool:
        """Whether a mask stands where the word comes; else it is the next token."""
        return (MASK, "") in self.parts

    @property
    def of_pairs(self) -> bool:
        """Whether a second text has a place."""
        return ("text_pair", "") in self.parts

    def __str__(self) -> str:
        """The template as `parse` reads it."""
        return "".join(
            text.replace("{", "{{").replace("}", "}}") if field is None else f"{{{field}}}"
            for field, text in self.parts
        )

    def render(self, **given: str) -> tuple[str, dict[str, tuple[int, int]]]:
        """The template with texts in the place of its fields, and where each of them begins and ends."""
        found, places = "", dict[str, tuple[int, int]]()
        for field, text in self.parts:
            piece = text if field is None else given[field]
            if field is not None:
                places[field] = (len(found), len(found) + len(piece))
            found += piece
        return found, places

    def before_word(self) -> tuple[str, str]:
        """What stands before the word where texts are one letter, without the space in front of the word, and
        that space where there is one."""
        front = Template(self.parts[: self.parts.index((MASK, ""))]) if self.masked else self
        text, _ = front.render(text="a", text_pair="a")
        bare = text.rstrip(" ")
        if self.masked:
            return bare, " " if text != bare else ""
        return text, "" if text[-1:].isspace() else " "


_EXAMPLE = EXAMPLES[True, False]


def _pieces(text: str) -> Sequence[tuple[str | None, str]]:
    """Fields and literals, one after the other; literals that touch are one."""
    found: list[tuple[str | None, str]] = [(None, "")]
    place = 0
    for match in _PIECE.finditer(text):
        literal, piece = text[place : match.start()], match[0]
        place = match.end()
        if piece in ("{{", "}}"):
            literal += piece[0]
        found[-1] = (None, found[-1][1] + literal)
        if piece in ("{", "}"):
            raise TaskError(
                f"The template {text!r} has a brace without a partner at letter {match.start() + 1}; a brace "
                f"of the text itself is written twice: {piece * 2}."
            )
        if match[1] is not None:
            name, known = match[1], (*FIELDS, MASK)
            if name not in known:
                raise TaskError(
                    f"The template {text!r} has the unknown field {{{name}}}.{near(name, known)} There are "
                    f"{', '.join(f'{{{n}}}' for n in known)}; a brace of the text itself is written twice."
                )
            found += [(FIELDS.get(name, name), ""), (None, "")]
    found[-1] = (None, found[-1][1] + text[place:])
    return found


@dataclass(frozen=True)
class LabelWords:
    """A word for each class.

    Attributes:
        words: in the order in which they were given.
        classes: the names of their classes, in that order; empty where the words are in that of the task's.
    """

    words: tuple[str, ...]
    classes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> LabelWords:
        """Read `bad,great` or `negative=bad,positive=great`; in a word `%2C`, `%3D` and `%25` stand for a
        comma, an equals sign and a percent sign.

        Raises:
            TaskError: there are fewer than two words or more than 500, one is empty, longer than 60 letters
                or stands there twice, or some have the name of a class and others have not.
        """
        if len(text) > _MOST_WORDS * _LONGEST_WORD:
            raise TaskError(f"Label words are a list of words, but got {len(text):,} letters: {text!r:.60}…")
        parts = [[unquote(part).strip() for part in word.split("=", 1)] for word in text.split(",")]
        if len({len(part) for part in parts}) > 1:
            raise TaskError(
                f"Of the label words {text!r:.300} some have the name of a class before them and others have "
                "not; write negative=bad,positive=great, or bad,great in the order of the classes."
            )
        named = len(parts[0]) == 2
        return cls._checked([part[-1] for part in parts], [part[0] for part in parts] if named else [])

    @classmethod
    def of(cls, data: WordsData) -> LabelWords:
        """The words in any of the forms that they are handed over in.

        Raises:
            TaskError: see `parse`; or they are in no such form.
        """
        if isinstance(data, str):
            return cls.parse(data)
        words = list(data.values()) if isinstance(data, Mapping) else list(data)
        classes = list(data) if isinstance(data, Mapping) else []
        wrong = [word for word in (*words, *classes) if not isinstance(word, str)]
        if wrong:
            raise TaskError(f"Label words are texts, but got {wrong[0]!r:.60} among them.")
        return cls._checked([w.strip() for w in words], [c.strip() for c in classes])

    @classmethod
    def _checked(cls, words: list[str], classes: list[str]) -> LabelWords:
        if not 2 <= len(words) <= _MOST_WORDS:
            raise TaskError(
                f"Label words are one for each class, from 2 to {_MOST_WORDS}, but got {len(words)}; write "
                "them with commas between: bad,great."
            )
        for word in (*words, *classes):
            if not word:
                raise TaskError("A label word or the class before it is empty; write bad,great.")
            if len(word) > _LONGEST_WORD:
                raise TaskError(f"A label word has up to {_LONGEST_WORD} letters, but got {word!r:.80}…")
            _check_shown("A label word", word)
        for what, found in (("label word", words), ("class", classes)):
            again = [word for word in found if found.count(word) > 1]
            if again:
                raise TaskError(f"The {what} {again[0]!r} stands there twice: each class has its own word.")
        return cls(tuple(words), tuple(classes))

    def __str__(self) -> str:
        """The words as `parse` reads them."""
        table = str.maketrans(_ESCAPES)
        words = [word.translate(table) for word in self.words]
        if not self.classes:
            return ",".join(words)
        classes = [name.translate(table) for name in self.classes]
        return ",".join(f"{name}={word}" for name, word in zip(classes, words, strict=True))

    def in_order(self, names: Sequence[str]) -> LabelWords:
        """The words in the order of the classes `names`, without the names.

        Raises:
            TaskError: they are too many or too few, or are for other classes.
        """
        if len(self.words) != len(names):
            raise TaskError(
                f"There are {len(self.words)} label words, and the task has the {len(names)} classes "
                f"{listed(names)}; give one word for each, in that order or as CLASS=WORD."
            )
        if not self.classes:
            return self
        unknown = [name for name in self.classes if name not in names]
        if unknown:
            raise TaskError(
                f"The label word of {unknown[0]!r} is for no class of the task.{near(unknown[0], names)} Its "
                f"classes are {listed(names)}."
            )
        by_class = dict(zip(self.classes, self.words, strict=True))
        return LabelWords(tuple(by_class[name] for name in names))


def _check_shown(what: str, text: str) -> None:
    """Refuse controls, which a terminal acts on and no tokenizer needs, and halves of letters."""
    wrong = next((letter for letter in text if not letter.isprintable() and letter not in "\n\t"), None)
    if wrong is not None or not is_unicode(text):
        shown = "half a letter" if wrong is None else f"the letter U+{ord(wrong):04X}"
        raise TaskError(f"{what} is text that can be printed, but {text!r:.80} has {shown}.")


def words_text(data: Any) -> Any:
    """Label words as text, which `LabelWords.parse` reads; anything else as it is."""
    return data if data is None or isinstance(data, str) else str(LabelWords.of(data))


def kind_with_words(kind: str | None, words: WordsData | None, template: str | None) -> str | None:
    """The name of the kind of task with label words and template; where no kind is named, classification.
    `kind` itself where there are neither.

    Raises:
        TaskError: they cannot be read, there is a template alone, or the kind's name tells some itself.
    """
    if words is None and template is None:
        return kind
    if kind is not None and "?" in kind:
        raise TaskError(
            f"The kind {kind!r:.300} tells options itself, so that label words and template cannot be told "
            "beside it; name them in one place."
        )
    told = {
        "label_words": None if words is None else LabelWords.of(words),
        "template": None if template is None else Template.parse(template),
    }
    return name_with_options(kind or _KIND, told)
