"""Process entry points of the heavy steps.

Each is a function from JSON to JSON, run in this process or, as
`python -m kinject_assets.workers.NAME`, in one that Dagster Pipes starts.
"""

import warnings

# peft asks transformers for an attribute by its old name; the user can do nothing about it.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
