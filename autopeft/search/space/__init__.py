"""A YAML space becomes parameters, then a recipe inside the budget, and back."""
