"""Reads the project's Markdown: its links, its blocks of code, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("**/*.md")])


def name_of(page: Path) -> str:
    """Path of a page for people."""
    return str(page.relative_to(REPOSITORY))


@cache
def tokens(page: Path) -> list[Token]:
    """Everything on a page, in order."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _inside(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or ()


def targets(page: Path) -> list[str]:
    """Where links and images lead."""
    found = [t.attrGet("href") or t.attrGet("src") for t in _inside(page)]
    return [str(target) for target in found if target]


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    parsed = tokens(page)
    for place, token in enumerate(parsed):
        if token.type == "heading_open":
            text = "".join(t.content for t in parsed[place + 1].children or ())
            base = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = sum(
                1 for anchor in found if re.fullmatch(rf"{re.escape(base)}(-\d+)?", anchor)
            )
            found.add(f"{base}-{number}" if number else base)
    return found


def blocks(page: Path, language: str) -> list[str]:
    """Blocks of code in a language; those without one have an empty one."""
    return [
        token.content for token in tokens(page) if token.type == "fence" and token.info == language
    ]


@dataclass(frozen=True)
class Call:
    """A call of kinject on a page.

    Attributes:
        page: Where it stands.
        words: What follows `kinject`.
    """

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: kinject {shlex.join(self.words)}"


def _commands(line: str) -> Iterator[list[str]]:
    """Commands of a line of shell, without redirections, comments and variables."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if set(word) <= set("&|;"):
            yield words
            words = []
        elif set(word) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        else:
            words.append(word)
    yield words


_CALL = re.compile(r"\s*(\$ )?([A-Z_]+=\S+ )*(\.venv/bin/)?kinject ")


def _statements(text: str) -> Iterator[str]:
    """Lines of shell that call kinject; one that ends within quotes goes on in the next."""
    begun = ""
    for line in text.replace("\\\n", " ").splitlines():
        if not begun and not _CALL.match(line):
            continue
        begun = f"{begun}\n{line}" if begun else line
        try:
            shlex.split(begun, comments=True)
        except ValueError:
            continue
        yield begun.strip().removeprefix("$ ")
        begun = ""


def calls(page: Path) -> list[Call]:
    """Every call of kinject in the page's blocks of shell."""
    found: list[Call] = []
    for text in (*blocks(page, ""), *blocks(page, "bash"), *blocks(page, "sh")):
        for line in _statements(text):
            for words in _commands(line):
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words = words[1:]
                if words and words[0].removeprefix(".venv/bin/") == "kinject":
                    found.append(Call(name_of(page), tuple(words[1:])))
    return found


def mentions(page: Path) -> list[Call]:
    """Calls that the text mentions in passing: `kinject ...` as code in a line."""
    found: list[Call] = []
    for token in _inside(page):
        if token.type == "code_inline" and re.match(r"kinject [a-z]", token.content):
            (words, *_) = _commands(token.content)
            found.append(Call(name_of(page), tuple(words[1:])))
    return found


def command_of(group: click.Group, words: tuple[str, ...]) -> tuple[click.Command, tuple[str, ...]]:
    """The command that words call, and the words behind it.

    Raises:
        LookupError: If there is none.
    """
    command: click.Command = group
    while isinstance(command, click.Group):
        if not words:
            raise LookupError("a group needs one of its commands")
        inner = command.commands.get(words[0])
        if inner is None:
            raise LookupError(f"no command {words[0]}")
        command, words = inner, words[1:]
    return command, words
