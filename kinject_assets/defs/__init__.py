"""Everything that imports dagster: thin assets, one module per stage, in the order of the data."""
