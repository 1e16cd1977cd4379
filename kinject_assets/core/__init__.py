"""The domain: imports no dagster; heavy libraries are imported only inside functions."""
