"""Classification of images: rows, loss, shortcuts, answers, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from support.pictures import content, picture, save_vit, write_pictures
from support.tiny import randomise, tiny_config

from autopeft.backbones import spec_of
from autopeft.errors import DataError, UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.tasks import EncodedTask, Task, get_kind, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.images import ImageFile
from autopeft.tasks.kinds import kind_of_model
from autopeft.tasks.table import ColumnNames, Table
from autopeft.training import TrainingPlan, train
from autopeft.training.arguments import TrainArguments
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.head_start import start_head
from autopeft.training.task_loading import task_from_arguments

KIND = get_kind("image_classification")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_vit(folder / "vit")
    write_pictures(folder / "pictures", 60)
    return folder


@pytest.fixture(scope="module")
def task(place: Path) -> Task:
    return load_task(str(place / "pictures"))


@pytest.fixture(scope="module")
def data(place: Path, task: Task) -> EncodedTask:
    return encode(task, KIND.encoder.load_processor(str(place / "vit")))


@pytest.fixture(scope="module")
def loaded(place: Path, task: Task) -> Any:
    return KIND.head.load_model(str(place / "vit"), task.labels)


@pytest.fixture
def model(loaded: Any) -> Any:
    return copy.deepcopy(loaded)


def recipe(at: str, *methods: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"autopeft": 2, "name": "r", "layers": [{"at": at, "attach": list(methods)}]})


HYBRID = (
    {"lora": {"sites": ["q", "v"], "rank": 2}},
    {"parallel_adapter": {"sites": ["ffn"], "bottleneck": 4}},
)


# Rows
# ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_claimed_and_split(task: Task) -> None:
    assert (task.kind, task.metric, task.labels) == ("image_classification", "accuracy", ("dark", "light"))
    assert [len(task.splits[name]) for name in ("train", "select", "test")] == [48, 6, 6]
    for split in task.splits.values():
        assert [image.digest for image in split.fields["image"]] == split.texts
    assert task.reading.columns == {"text": "image", "label": "label"}


def test_equal_images_never_part(tmp_path: Path) -> None:
    write_pictures(tmp_path, 40)
    for i in range(20):
        (tmp_path / "dark" / f"again{i}.png").write_bytes((tmp_path / "dark" / "0.png").read_bytes())
    splits = load_task(str(tmp_path)).splits
    assert sum(bool(set(splits["train"].texts) & set(splits[name].texts)) for name in ("select", "test")) == 0


def rows(n: int = 30) -> list[dict[str, Any]]:
    names = ("dark", "light")
    return [
        {"image": {"bytes": content(picture(names[i % 2], i)), "path": f"{i}.png"}, "label": i % 2}
        for i in range(n)
    ]


FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])}
)


def test_parquet_and_memory_are_the_same_rows(tmp_path: Path) -> None:
    made: Any = datasets.Dataset.from_list(rows(), features=FEATURES)
    made.to_parquet(str(tmp_path / "data.parquet"))
    tasks = [load_task(str(tmp_path / "data.parquet")), load_task(made), load_task(pandas.DataFrame(rows()))]
    assert [t.kind for t in tasks] == ["image_classification"] * 3
    assert tasks[0].labels == tasks[1].labels == ("dark", "light")
    assert tasks[2].labels == ("0", "1")
    assert all(t.splits["test"].texts == tasks[0].splits["test"].texts for t in tasks)
    assert tasks[0].source.sha256 == tasks[1].source.sha256


def test_pictures_of_pillow_are_taken() -> None:
    frame = pandas.DataFrame({"picture": [picture("dark", i) for i in range(20)], "label": list("ab") * 10})
    found = load_task(frame)
    assert found.reading.columns["text"] == "picture"
    assert np.array_equal(
        sorted(np.asarray(i.pixels()).sum() for s in found.splits.values() for i in s.fields["image"]),
        sorted(np.asarray(p).sum() for p in frame["picture"]),
    )


def test_a_table_that_names_files_opens_none(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(content(picture("dark", 0)))
    listed = [{"image": {"bytes": None, "path": str(secret)}, "label": "a"}] * 20
    pandas.DataFrame(listed).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataError, match="row 1 names a file in place of bytes"):
        load_task(str(tmp_path / "data.parquet"))


def table(**columns: Any) -> Table:
    return Table("a table", columns, {})


IMAGE = ImageFile.of_bytes(content(picture("dark", 0)), "0.png")


@pytest.mark.parametrize(
    ("columns", "named", "why"),
    [
        ({"image": [IMAGE, None], "label": ["a", "b"]}, ColumnNames(), "no image in row 2"),
        ({"image": [IMAGE, IMAGE], "label": ["a", None]}, ColumnNames(), "no label in row 2"),
        ({"image": [IMAGE, 3], "label": ["a", "b"]}, ColumnNames(), "row 2 is no image but int"),
        ({"image": [IMAGE, b"x"], "label": ["a", "b"]}, ColumnNames(), "row 2: is no image of a known"),
        ({"one": [IMAGE], "two": [IMAGE], "label": ["a"]}, ColumnNames(), "2 columns of images"),
        ({"text": ["a"], "label": ["a"]}, ColumnNames(), "no columns of images"),
        ({"image": [IMAGE], "text": ["a"], "label": ["a"]}, ColumnNames("text"), "holds no images"),
        ({"image": [IMAGE], "text": ["a"], "label": ["a"]}, ColumnNames(None, "text"), "--text-pair"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(columns: Any, named: ColumnNames, why: str) -> None:
    given = table(**columns)
    with pytest.raises(DataError, match=why):
        KIND.schema.read(given, KIND.schema.columns(given, named))


def test_texts_are_not_claimed() -> None:
    assert KIND.schema.claim({"train": table(text=["a"], label=["b"])}, ColumnNames()) == 0
    assert KIND.schema.claim({"train": table(text=["a"], image=[IMAGE])}, ColumnNames("text")) == 0
    assert KIND.schema.claim({"train": table(text=["a"], image=[IMAGE])}, ColumnNames()) > 0.9


# Model and loss
# ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_models_own(data: EncodedTask, model: Any) -> None:
    batch = data.train.collate(np.arange(8))
    with torch.no_grad():
        own = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
        ours = data.task.loss().mean(Forward(model, kind=KIND)(batch), batch)
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
    assert kind_of_model(model.config, type(model).__name__) == (KIND, ("dark", "light"))


@pytest.mark.parametrize("at", ["last 1", "last 2", "all"])
def test_shortcuts_compute_the_plain_logits(at: str, data: EncodedTask, model: Any) -> None:
    with attach(model, recipe(at, *HYBRID), seed=0) as hybrid:
        randomise(hybrid.root)
        forward = shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)
        below = {"last 1": 2, "last 2": 1, "all": 0}[at]
        assert (forward.trunk.depths if forward.trunk else {}) == ({"encoder": below} if below else {})
        assert forward.rows is not None
        assert forward.rows.reader == "first"
        batch = data.train.collate(np.arange(8))
        states = forward.trunk.compute(batch) if forward.trunk else {}
        with torch.no_grad():
            plain, found = Forward(model, kind=KIND)(batch), forward.logits(batch, states)
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        if below:  # what is kept of them is rounded to fp16
            (kept,) = forward.batches(
                data.train.take(np.arange(8)), 8, shuffle=False, device=torch.device("cpu")
            )
            assert "trunk_encoder" in kept
            torch.testing.assert_close(forward(kept).detach(), plain, rtol=1e-3, atol=1e-3)


def test_states_of_another_number_of_positions_are_not_kept(data: EncodedTask, model: Any) -> None:
    from dataclasses import replace

    other = {
        name: replace(split, max_length=4, offsets=np.arange(len(split) + 1) * 4)
        for name, split in data.splits.items()
    }
    with attach(model, recipe("last 1", *HYBRID), seed=0) as hybrid:
        forward = shortest_forward(hybrid, replace(data, splits=other), TrainingPlan(steps=1), dropout=False)
        assert forward.trunk is None


def test_the_head_starts_fitted_and_a_hybrid_learns(data: EncodedTask, model: Any) -> None:
    plan = TrainingPlan(steps=30, batch_size=8)
    assert start_head(model, data, plan, alone=True) is not None
    with attach(model, recipe("all", *HYBRID), seed=0) as hybrid:
        result = train(hybrid, data, plan)
    assert result.losses[-1] < 0.3


def test_half_precision_takes_the_pixels(data: EncodedTask, model: Any) -> None:
    with torch.no_grad():
        assert Forward(model.to(torch.bfloat16), kind=KIND)(data.train.collate([0])).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "task_name"), [("bert", "pictures"), ("vit", "texts")])
def test_texts_and_images_want_backbones_of_their_own(name: str, task_name: str, place: Path) -> None:
    (place / "texts").mkdir(exist_ok=True)
    lines = [f"word{i} and more,{'ab'[i % 2]}" for i in range(40)]
    (place / "texts" / "train.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    given = TrainArguments(task=str(place / task_name), recipe="mam", model=name)
    with pytest.raises(
        UsageError, match=r"is a backbone that reads (texts|images), and .* is of (images|texts)"
    ):
        task_from_arguments(given, backbone=spec_of(tiny_config(name)))


# Use
# ----------------------------------------------------------------------------------------------------------


def test_what_is_asked(place: Path, tmp_path: Path) -> None:
    image = place / "pictures" / "dark" / "0.png"
    folder = KIND.schema.asked_table(place / "pictures")
    assert folder is not None
    assert len(folder) == 60
    for one in (image, str(image), [str(image)], [image], picture("dark", 0), content(picture("dark", 0))):
        found = KIND.schema.asked_table(one)
        assert found is not None
        assert len(found) == 1
        assert KIND.schema.unanswerable(found, KIND.schema.text_columns(found, ColumnNames())) == {}
    assert KIND.schema.asked_table(tmp_path / "data.parquet") is None


def test_rows_without_an_answer_say_why() -> None:
    bad = ImageFile.of_bytes(content(picture("dark", 1))[:-100], "1.png")
    given = table(image=[IMAGE, bad, None, {"bytes": b"x", "path": "x/2.png"}])
    found = KIND.schema.unanswerable(given, KIND.schema.text_columns(given, ColumnNames()))
    assert found[1].startswith("cannot be decoded as an image") or "cannot be decoded" in found[1]
    assert found[2] == "no image"
    assert "no image of a known format" in found[3]
    assert [KIND.schema.shown(value, i) for i, value in enumerate(given.columns["image"])] == [
        "0.png", "1.png", "row 3", "x/2.png"
    ]  # fmt: skip


def test_another_processor_is_refused() -> None:
    with pytest.raises(UsageError, match="a str"):
        KIND.encoder.processor("x", tiny_config("vit"))
