"""The synthetic lake and its database."""

from kinject_assets_tests.core.results.fixtures import built, lake, rich

__all__ = ["built", "lake", "rich"]
