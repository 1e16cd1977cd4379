"""Injecting a corpus into a model: packing, the search for a learning rate, and training itself."""
