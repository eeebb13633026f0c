"""A hybrid as data: which methods sit where on a backbone, and how they train; YAML in and out."""

from autopeft.recipe.core import EmptyRecipe, EntryRef, Recipe
from autopeft.recipe.layers import resolve_layers, spindle_sizes
from autopeft.recipe.library import recipe_names
from autopeft.recipe.models import (
    CompositionItem,
    EntryItem,
    GroupSection,
    Item,
    LayerBlock,
    PolicyItem,
    Settings,
    TrainingSection,
)

__all__ = [
    "CompositionItem",
    "EmptyRecipe",
    "EntryItem",
    "EntryRef",
    "GroupSection",
    "Item",
    "LayerBlock",
    "PolicyItem",
    "Recipe",
    "Settings",
    "TrainingSection",
    "recipe_names",
    "resolve_layers",
    "spindle_sizes",
]
