"""The DuckDB database of results: built from the lake, read by tables and reports."""
