"""What holds the modules of a hybrid on its model."""

from __future__ import annotations

import pytest
from support.tiny import tiny_model

from autopeft.backbones import spec_of_model
from autopeft.errors import RecipeError
from autopeft.hybrid.modules import Root
from autopeft.recipe import Recipe


def test_an_entry_cannot_be_called_like_an_attribute_of_what_holds_the_entries() -> None:
    spec, _ = spec_of_model(tiny_model("bert"))
    taken = [name for name in dir(Root({}, Recipe.from_dict({}), spec)) if len(name) <= 64]
    assert {"recipe", "spec", "forward"} <= set(taken)
    for name in taken:
        with pytest.raises(RecipeError, match="choose another"):
            Recipe.from_dict({"layers": [{"attach": [{"lora": {}, "as": name}]}]})
