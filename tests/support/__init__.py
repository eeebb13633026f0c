"""Shared test doubles: tiny models of every architecture, and what is done with them."""
