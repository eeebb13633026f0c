"""Classification of images: one class for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PretrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from autopeft.assets import ImageProcessor, ModelSource, image_processor_of, load_image_processor
from autopeft.errors import DataError, UsageError
from autopeft.foreign import local_path
from autopeft.spec import BackboneSpec
from autopeft.tasks.folders import IMAGE, images_in, is_image_file
from autopeft.tasks.images import ImageFile, image_of, is_image, problem_of
from autopeft.tasks.kinds.classification import ClassHead, ClassSchema, ClassScorer
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.pixels import EncodedImages, encode_images
from autopeft.tasks.split import Split
from autopeft.tasks.table import (
    NO_TEXT,
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    choose_columns,
    listed,
    read_labels,
    refuse_rows,
)

_CLAIM = 0.95
_NO_IMAGE = "no image"


class ImageSchema(ClassSchema):
    """Rows are images. A row's text is the digest of its image, so that equal images never part when splits
    are cut; the field `image` has the image itself."""

    row_name = "image"
    asked_file = "path/to/images"

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims tables with a column of images."""
        found = _image_columns(tables["train"])
        return _CLAIM if (named.text in found if named.text is not None else found) else 0.0

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """The column of images, and the label's."""
        if named.text_pair is not None:
            raise DataError(f"A row of {self.kind} is one image; leave out --text-pair (text_pair).")
        image = _image_column(table, named.text, "--text")
        return choose_columns(table, image, None, named.label)

    def read(self, table: Table, columns: Columns) -> RawRows:
        """The rows; of every image the header is looked at.

        Raises:
            DataError: there are none, or an image or a label is missing or cannot be read.
        """
        if columns.text not in table.columns or not len(table):
            raise DataError(f"{table.where} has no rows, or no column {columns.text!r}.")
        values = table.columns[columns.text]
        refuse_rows(table, columns.text, _NO_IMAGE, [i for i, value in enumerate(values) if value is None])
        images = [image_of(value, f"{table.where}, row {i + 1}") for i, value in enumerate(values)]
        for image in images:
            image.check()
        labels = [None] * len(images) if columns.label is None else read_labels(table, columns.label)
        return RawRows(table.where, [image.digest for image in images], None, labels, {IMAGE: images})

    def asked_table(self, data: Any) -> Table | None:
        """A folder of images, an image, or a list of these or of their files."""
        if isinstance(data, str | Path):
            path = local_path(data, DataError)
            if path.is_dir():
                return images_in(path)
            if isinstance(data, Path) and not is_image_file(path.name):
                return None  # a table
            return Table(str(path), {IMAGE: [ImageFile.of_file(path)]}, {})
        if is_image(data):
            data = [data]
        if not isinstance(data, Sequence):
            return None
        values = [
            ImageFile.of_file(local_path(one, DataError)) if isinstance(one, str | Path) else one
            for one in data
        ]
        return Table("The list of images", {IMAGE: values}, {})

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The column of images."""
        return Columns(_image_column(table, named.text, "--text-column"), None, None)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Rows whose image cannot be decoded."""
        values = table.columns[columns.text]
        problems = {
            i: NO_TEXT.replace("text", "image") if value is None else problem_of(value, f"row {i + 1}")
            for i, value in enumerate(values)
        }
        return {i: problem for i, problem in problems.items() if problem is not None}

    def shown(self, value: Any, row: int) -> str:
        """The name of an image, or its path in the data set that it is from."""
        if isinstance(value, ImageFile):
            return value.name
        path = value.get("path") if isinstance(value, Mapping) else None
        return path if isinstance(path, str) else f"row {row + 1}"


class ImageEncoder(Encoder):
    """The pixels of images, by the backbone's own image processor."""

    def load_processor(self, source: ModelSource | str) -> ImageProcessor:
        """The backbone's image processor."""
        return load_image_processor(source)

    def processor(self, given: Any, config: PretrainedConfig) -> ImageProcessor:
        """See `Encoder.processor`."""
        if isinstance(given, ImageProcessor):
            return given
        if not isinstance(given, BaseImageProcessor):
            raise UsageError(
                "Images are made ready by an image processor of transformers, but got a "
                f"{type(given).__name__}."
            )
        return image_processor_of(given, config, type(given).__name__)

    def positions(self, rows: Split, source: ModelSource, max_length: int) -> float:
        """See `Encoder.positions`; of every image as many."""
        return float(self.load_processor(source).positions)

    def encode(
        self, rows: Split, tokenizer: Any, max_length: int, *, labelled: bool = True, cached: bool = True
    ) -> EncodedImages:
        """See `Encoder.encode`; `tokenizer` is an `ImageProcessor`, and `max_length` means nothing."""
        found = encode_images(rows.fields[IMAGE], tokenizer, kind=self.kind, cached=cached)
        return replace(found, labels=self.label_array(rows.labels)) if labelled else found

    def truncated(self, rows: Split, tokenizer: Any, max_length: int) -> float | None:
        """Images are not cut."""
        return None

    def describe_reading(self, max_length: int) -> str:
        return "Images become red, green and blue, and go through the backbone's own image processor."


class ImageHead(ClassHead):
    """One output for each class, by a backbone that reads images."""

    auto_class = AutoModelForImageClassification
    modality = "vision"
    peft_task_type = None
    hub_pipeline = "image-classification"

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """See `Head.refused`; `task_from_arguments` compares modalities."""
        return None

    def inputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The pixels in the type of the model's weights."""
        return {"pixel_values": batch["pixel_values"].to(next(model.parameters()).dtype)}


def _image_columns(table: Table) -> list[str]:
    """The columns whose first value that is there is an image."""
    firsts = {
        name: next((value for value in values if value is not None), None)
        for name, values in table.columns.items()
    }
    return [name for name, first in firsts.items() if is_image(first)]


def _image_column(table: Table, named: str | None, option: str) -> str:
    """The column that was named, or the only one of images; of several that called `image`.

    Raises:
        DataError: there is none, or several.
    """
    check_named(table, ((option, named),))
    found = _image_columns(table)
    if named is not None and named not in found:
        raise DataError(f"Column {named!r} of {table.where} holds no images ({listed(found)} do).")
    if named is None and len(found) != 1 and IMAGE not in found:
        raise DataError(
            f"{table.where} has {len(found) or 'no'} columns of images ({listed(found)}); it has "
            f"{listed(list(table.columns))}. Images are files in folders, or bytes in a column, as "
            f"`datasets` writes them to Parquet{f'; name the column with {option}' if found else ''}."
        )
    return named or (IMAGE if IMAGE in found else found[0])


register_kind(
    TaskKind(
        "image_classification",
        "one of two or more classes for an image",
        schema=ImageSchema(),
        encoder=ImageEncoder(),
        head=ImageHead(),
        scorer=ClassScorer(),
    )
)
