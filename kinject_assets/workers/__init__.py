"""Process entry points of the heavy steps.

Each is a function from JSON to JSON, run in this process or, as `python -m
kinject_assets.workers.NAME`, in one that Dagster Pipes starts.
"""
