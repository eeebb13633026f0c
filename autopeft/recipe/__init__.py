"""A hybrid as data: which methods sit where on a backbone, and how they train; YAML in and out."""

from autopeft.recipe.core import EmptyRecipe, EntryRef, Recipe
from autopeft.recipe.inputs import InputItem, address_of
from autopeft.recipe.layers import resolve_layers, spindle_sizes
from autopeft.recipe.library import recipe_names
from autopeft.recipe.models import (
    CompositionItem,
    EntryItem,
    Item,
    LayerBlock,
)
from autopeft.recipe.training import GroupSection, PolicyItem, TrainingSection

__all__ = [
    "CompositionItem",
    "EmptyRecipe",
    "EntryItem",
    "EntryRef",
    "GroupSection",
    "InputItem",
    "Item",
    "LayerBlock",
    "PolicyItem",
    "Recipe",
    "TrainingSection",
    "address_of",
    "recipe_names",
    "resolve_layers",
    "spindle_sizes",
]
