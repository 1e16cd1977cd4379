"""The synthetic lake and its database."""

from kinject_assets_tests.core.results.fixtures import built, lake

__all__ = ["built", "lake"]
