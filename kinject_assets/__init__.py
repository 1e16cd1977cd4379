"""kinject: fine-tune, retrieve, or both? A Dagster code location that answers it with numbers."""

__version__ = "0.1.0"
