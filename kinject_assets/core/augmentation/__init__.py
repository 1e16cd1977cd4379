"""Texts on chunks to train on: paraphrases and other augmentations."""
