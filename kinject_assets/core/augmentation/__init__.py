"""Paraphrases of chunks."""
