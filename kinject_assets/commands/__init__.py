"""The commands of `kinject`, by theme. Imports of weight are inside functions: help is quick."""
