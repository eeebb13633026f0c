"""Images on the command line: searched, scored, asked and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import run
from support.pictures import content, picture, save_vit, write_pictures
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

SMALL = (
    "--budget", "20%", "--effort", "quick", "--trials", "1", "--steps", "6", "--batch-size", "8",
    "--workers", "0", "--baselines", "head", "--space", "lora",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, images, what a search found, and new images."""
    folder = tmp_path_factory.mktemp("place")
    save_vit(folder / "vit")
    write_pictures(folder / "pictures", 60)
    (folder / "new").mkdir()
    for i, label in enumerate(("dark", "light")):
        (folder / "new" / f"{label}.png").write_bytes(content(picture(label, 100 + i)))
    (folder / "new" / "cut.png").write_bytes(content(picture("dark", 9))[:-100])
    done = run(folder, "search", "--task", "pictures", "--model", "vit", *SMALL, "--out", "found")
    assert "predict found --file path/to/images" in done.stdout
    return folder


def asked(place: Path, hybrid: str, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(place, "predict", hybrid, *more, "--json").stdout)
    return found


@pytest.mark.slow
def test_what_a_run_says_of_images(place: Path) -> None:
    manifest = json.loads((place / "found" / "manifest.json").read_text())
    assert manifest["data"]["kind"] == "image_classification"
    facts = {fact["name"]: fact["text"] for fact in manifest["data"]["summary"]["facts"]}
    assert facts["columns"] == "image 'image', label 'label'"
    assert "truncated" not in facts
    assert json.loads(run(place, "evaluate", "found", "--json").stdout)["rows"] == 6
    run(place, "report", "found", "--out", "page.html")
    assert "--file path/to/images" in (place / "page.html").read_text()


@pytest.mark.slow
def test_folders_and_single_images_are_asked(place: Path) -> None:
    answers = asked(place, "found", "--file", "new")
    assert [row["image"] for row in answers] == ["cut.png", "dark.png", "light.png"]
    assert "cannot be decoded" in answers[0]["problem"]
    (alone,) = asked(place, "found", "--file", "new/dark.png")
    (named,) = asked(place, "found", "--text", "new/dark.png")
    assert alone["logits"] == pytest.approx(answers[1]["logits"], abs=1e-5)
    assert named["logits"] == alone["logits"]
    lines = run(place, "predict", "found", "--file", "new").stdout.splitlines()
    assert lines[0].startswith("no answer: cannot be decoded")
    assert lines[1].endswith("\tdark.png")


def pixels(place: Path, folder: Path) -> torch.Tensor:
    """What plain transformers makes of an image."""
    from PIL import Image

    processor: Any = AutoImageProcessor.from_pretrained(str(folder))
    with Image.open(place / "new" / "light.png") as image:
        return torch.as_tensor(processor(image.convert("RGB"), return_tensors="pt")["pixel_values"])


@pytest.mark.slow
def test_a_merged_model_is_plain_transformers(place: Path) -> None:
    run(place, "export", "found", "-o", "merged-out", "--as", "merged")
    merged = place / "merged-out" / "merged"
    model = AutoModelForImageClassification.from_pretrained(str(merged))
    with torch.no_grad():
        logits = model(pixel_values=pixels(place, merged)).logits[0]
    (own,) = asked(place, "found", "--file", "new/light.png")
    torch.testing.assert_close(logits, torch.tensor(own["logits"]), rtol=1e-4, atol=1e-4)
    assert model.config.id2label == {0: "dark", 1: "light"}
    card = (place / "merged-out" / "README.md").read_text()
    assert "from transformers import AutoImageProcessor, AutoModelForImageClassification" in card
    assert "Texts are cut" not in card
    assert "longest text" not in card
    (again,) = asked(place, "merged-out", "--file", "new/light.png", "--model", "vit")
    assert again["logits"] == own["logits"]


@pytest.mark.slow
def test_an_adapter_is_plain_peft(place: Path) -> None:
    from peft import PeftModel

    run(place, "export", "found", "-o", "peft-out", "--as", "peft")
    base = ViTForImageClassification.from_pretrained(str(place / "vit"), num_labels=2)
    model = PeftModel.from_pretrained(base, str(place / "peft-out" / "peft"))
    with torch.no_grad():
        logits = model(pixel_values=pixels(place, place / "vit")).logits[0]
    (own,) = asked(place, "found", "--file", "new/light.png")
    torch.testing.assert_close(logits, torch.tensor(own["logits"]), rtol=1e-4, atol=1e-4)
