"""Strategies: how a space becomes candidates. `trials` draws and trains independent recipes."""
