"""One of everything that can be added: a method, a composition, a sampler, a strategy and a kind of task."""
