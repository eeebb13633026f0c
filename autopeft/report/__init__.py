"""Recipes, methods, runs and scores as tables and text."""
