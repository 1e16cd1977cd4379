import pytest

from kinject_assets.core.corpus.articles import permalink


@pytest.mark.parametrize(
    ("source", "revision", "link"),
    [
        (
            "https://en.wikipedia.org/w/api.php",
            "1187",
            "https://en.wikipedia.org/w/index.php?oldid=1187",
        ),
        ("https://example.org/api.php", "7", "https://example.org/index.php?oldid=7"),
        ("files", "9f2c", "notes/rivers.md"),
        ("https://example.org/w/api.php", "7&action=delete", "notes/rivers.md"),
    ],
)
def test_the_address_of_a_revision(source: str, revision: str, link: str) -> None:
    assert permalink(source, "notes/rivers.md", revision) == link
