"""Image processors: what is known of them, and which are refused before anything is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pictures import picture, save_vit

from autopeft.assets import images, load_image_processor, resolve_model
from autopeft.errors import UsageError

_FILE = "preprocessor_config.json"


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("vit"))


def changed(vit: Path, to: Path, **values: Any) -> Path:
    for path in vit.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    said = {**json.loads((vit / _FILE).read_text()), **values}
    (to / _FILE).write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return to


def test_what_is_known(vit: Path) -> None:
    found = load_image_processor(str(vit))
    assert (found.shape, found.positions, found.dtype) == ((3, 16, 16), 5, np.uint8)
    image = picture("dark", 0)
    assert found.scale is not None
    assert found.offset is not None
    made = found(image) * found.scale[:, None, None] + found.offset[:, None, None]
    plain = found.inner(image, return_tensors="np")["pixel_values"][0]
    assert np.allclose(made, plain, atol=1e-5)


def test_settings_decide_the_fingerprint_and_which_model_it_is(vit: Path, tmp_path: Path) -> None:
    other = load_image_processor(str(changed(vit, tmp_path, image_mean=[0.1, 0.2, 0.3])))
    assert other.fingerprint != load_image_processor(str(vit)).fingerprint
    assert resolve_model(str(tmp_path)).sha256 != resolve_model(str(vit)).sha256


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"size": {"height": -5000, "width": 16}}, "makes nothing of an image"),
        ({"rescale_factor": float("nan")}, "not finite"),
        ({"size": {"shortest_edge": 16}}, "several sizes"),
        ({"size": {"height": 32, "width": 32}}, "does not take the images that its .* makes .3 × 32 × 32"),
        ({"size": {"height": 0, "width": 0}}, "makes nothing of an image|several sizes|No usable"),
        ({"size": "large"}, "image processor"),
        ({"image_std": [0.0, 0.0, 0.0]}, "not finite"),
        ({"image_mean": "abc"}, "makes nothing of an image"),
        ({"image_processor_type": "os.system"}, "No usable image processor"),
        ({"image_processor_type": None, "auto_map": {"AutoImageProcessor": "code.Thing"}}, "image processor"),
    ],
)  # fmt: skip
def test_what_no_model_takes_is_refused(values: dict[str, Any], why: str, vit: Path, tmp_path: Path) -> None:
    if "auto_map" in values:
        (tmp_path / "code.py").write_text("raise SystemExit('run')")
        values = {**values, "image_processor_type": "Thing"}
    with pytest.raises(UsageError, match=why):
        load_image_processor(str(changed(vit, tmp_path, **values)))


def test_a_folder_without_one_is_told(vit: Path, tmp_path: Path) -> None:
    changed(vit, tmp_path)
    (tmp_path / _FILE).unlink()
    with pytest.raises(UsageError, match="which says how images are made ready"):
        load_image_processor(str(tmp_path))
    (tmp_path / _FILE).write_text("[[[")
    with pytest.raises(UsageError, match="image processor"):
        load_image_processor(str(tmp_path))


def test_without_pillow_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'autopeft\[images\]'"):
        load_image_processor("minilm")
