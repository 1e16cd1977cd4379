"""Local files to articles: text, Markdown, HTML, PDF, and jsonl with an article a line."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kinject_assets import config
from kinject_assets.config import Files
from kinject_assets.core.corpus.articles import Section, make_article
from kinject_assets.core.errors import SourceError
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Article, Exclusion

SOURCE = "files"

HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\s*$")
UNDERLINE = re.compile(r"(=+|-{2,})\s*$")
FENCE = re.compile(r"\s*(```|~~~)")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
MARKED_LINE = re.compile(r"\s*(?:[-*+•>|#]|\d+[.)]\s|```|~~~|\s{4})")
"""A line that stands for itself: list item, quotation, table row, code."""

WRAPPED_FROM = 40
"""Characters from which a line's end may be a hard wrap inside a paragraph."""

SKIPPED_HTML = frozenset(
    "script style noscript template head svg iframe object select button".split()
)
BLOCK_HTML = frozenset(
    "p div section article main header footer aside nav ul ol li dl dt dd table tr pre blockquote "
    "br hr figure figcaption form address details summary body h1 h2 h3 h4 h5 h6".split()
)

Read = tuple[str, list[Section]]
"""Title (empty if the file has none) and sections."""


class Unusable(Exception):
    """A file has no text that we can read; the message is the reason."""


def _unwrap(text: str) -> str:
    """Joins lines that were wrapped inside a paragraph, so that sentences stay whole."""
    out: list[str] = []
    fenced = False
    for line in text.splitlines():
        line = line.rstrip()
        mark = FENCE.match(line)
        joins = (
            not fenced
            and out
            and len(out[-1]) >= WRAPPED_FROM
            and line.strip()
            and not MARKED_LINE.match(line)
        )
        if not joins:
            out.append(line)
        elif out[-1].endswith("-") and line.lstrip()[:1].islower() and out[-1][-2:-1].isalpha():
            out[-1] = out[-1][:-1] + line.lstrip()
        else:
            out[-1] = f"{out[-1]} {line.lstrip()}"
        fenced ^= bool(mark)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip("\n")


def _filled(sections: list[Section]) -> list[Section]:
    unwrapped = ((heading, _unwrap(body)) for heading, body in sections)
    return [(heading, body) for heading, body in unwrapped if body.strip()]


def _decoded(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise Unusable("binary, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_text(raw: bytes) -> Read:
    return "", _filled([("", _decoded(raw))])


def _read_markdown(raw: bytes) -> Read:
    lines = FRONT_MATTER.sub("", _decoded(raw)).split("\n")
    title = ""
    sections: list[tuple[str, list[str]]] = [("", [])]
    fenced = False
    for line in lines:
        fenced ^= bool(FENCE.match(line))
        body = sections[-1][1]
        level, heading = 0, ""
        if not fenced and (match := HEADING.match(line)):
            level, heading = len(match[1]), match[2]
        elif (
            not fenced
            and (match := UNDERLINE.match(line))
            and body
            and body[-1].strip()
            and not MARKED_LINE.match(body[-1])
            and (len(body) == 1 or not body[-2].strip())
        ):
            level, heading = (1 if match[1][0] == "=" else 2), body.pop().strip()
        if not level:
            body.append(line)
        elif level == 1 and not title and not any(any(b) for _, b in sections):
            title = heading
        else:
            sections.append((heading, []))
    return title, _filled([(heading, "\n".join(body)) for heading, body in sections])


def _html_lines(element: Any) -> Iterator[tuple[str, str]]:
    """Pieces of an HTML tree in order: ("text", ...), ("break", "") and ("heading", ...)."""
    from lxml import html

    waiting: list[tuple[Any, bool]] = [(element, False)]
    while waiting:
        node, leaving = waiting.pop()
        name = node.tag if isinstance(node.tag, str) else ""
        if leaving:
            if name in BLOCK_HTML:
                yield "break", ""
            elif name in {"td", "th"}:
                yield "text", " "
            yield "text", node.tail or ""
            continue
        if not name or name in SKIPPED_HTML or isinstance(node, html.HtmlEntity):
            yield "text", node.tail or ""
            continue
        if re.fullmatch(r"h[1-6]", name):
            yield "heading", " ".join(node.text_content().split())
            yield "text", node.tail or ""
            continue
        if name in BLOCK_HTML:
            yield "break", ""
        yield "text", node.text or ""
        waiting.append((node, True))
        waiting.extend((child, False) for child in reversed(node))


def _read_html(raw: bytes) -> Read:
    from lxml import html
    from lxml.etree import LxmlError

    try:
        raw.decode("utf-8-sig")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None  # The one that the document names.
    try:
        parser = html.HTMLParser(encoding=encoding, no_network=True)
        tree = html.document_fromstring(raw, parser=parser)
    except (LxmlError, ValueError) as error:
        raise Unusable(f"not readable as HTML ({error})") from error
    title = " ".join((tree.findtext(".//title") or "").split())
    sections: list[tuple[str, str]] = [("", "")]
    bodies = tree.findall("body")
    for kind, text in _html_lines(bodies[0] if bodies else tree):
        heading, body = sections[-1]
        if kind == "heading":
            sections.append((text, ""))
        else:
            more = "\n" if kind == "break" else re.sub(r"\s+", " ", text)
            sections[-1] = (heading, body + more)
    tidied = [
        (heading, "\n".join(filter(None, (" ".join(line.split()) for line in body.split("\n")))))
        for heading, body in sections
    ]
    return title, [(heading, body) for heading, body in tidied if body]


def _read_pdf(raw: bytes) -> Read:
    import io

    from pypdf import PdfReader

    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unusable("a PDF with a password; save it without")
        title = str((reader.metadata.title if reader.metadata else None) or "").strip()
        text = "\n".join(page.extract_text() for page in reader.pages)
    except Unusable:
        raise
    except Exception as error:  # a damaged PDF can make the parser fail in any way
        raise Unusable(f"not readable as PDF ({type(error).__name__}: {error})") from error
    sections = _filled([("", text.replace("\0", ""))])
    if not sections:
        raise Unusable("a PDF without text, perhaps scanned; run text recognition on it first")
    return title, sections


READERS: dict[str, Callable[[bytes], Read]] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
}
"""File ending, in lower case -> what reads such a file."""


def _line_problem(row: Any) -> str:
    if not isinstance(row, dict):
        return 'not a JSON object; write {"text": "..."}'
    if "text" not in row:
        return "no field `text`; add it"
    for field in ("text", "title", "url", "revised_at"):
        if not isinstance(row.get(field, ""), str):
            return f"`{field}` is not a string; put it in quotation marks"
    if not isinstance(row.get("id", ""), str | int):
        return "`id` is neither a string nor a whole number"
    return ""


def _jsonl_rows(path: Path, relative: str, raw: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a jsonl file, each with its id (its line number where it has none)."""
    first: dict[str, int] = {}
    for number, line in enumerate(_decoded(raw).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SourceError(
                f"{path}, line {number}: not JSON ({error}). Write one object a line, e.g. "
                '{"title": "...", "text": "..."}'
            ) from error
        problem = _line_problem(row)
        name = str(row.get("id", f"line {number}")) if not problem else ""
        if not problem and name in first:
            problem = f"`id` {name!r} is that of line {first[name]} too; ids are unique in a file"
        if not problem and row.get("revised_at"):
            try:
                datetime.fromisoformat(row["revised_at"].replace("Z", "+00:00"))
            except ValueError:
                problem = "`revised_at` is no time; write e.g. 2024-05-31T12:00:00Z"
        if problem:
            raise SourceError(f"{path}, line {number}: {problem}.")
        first[name] = number
        yield name, row


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    read = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


class _Reader:
    def __init__(self, settings: Files, folder: Path, fetched_at: datetime) -> None:
        self.settings = settings
        self.folder = folder
        self.fetched_at = fetched_at
        self.articles: list[Article] = []
        self.exclusions: list[Exclusion] = []

    def _exclude(self, name: str, reason: str) -> None:
        self.exclusions.append(Exclusion(title=name, reason=reason))

    def _add(
        self,
        sections: list[Section],
        ids: tuple[str, ...],
        title: str,
        url: str = "",
        revised_at: str | None = None,
    ) -> None:
        self.articles.append(
            make_article(
                sections,
                article_id=content_hash(SOURCE, *ids),
                revision_id=content_hash(title, sections),
                source=SOURCE,
                title=title,
                revised_at=_time(revised_at),
                fetched_at=self.fetched_at,
                url=url or ids[0],
                licence=self.settings.licence,
            )
        )

    def read(self, path: Path) -> None:
        relative = path.relative_to(self.folder).as_posix()
        if not path.resolve().is_relative_to(self.folder.resolve()):
            self._exclude(relative, "a link that leads out of the folder")
            return
        try:
            raw = path.read_bytes()
            if path.suffix.lower() == ".jsonl":
                self._lines(path, relative, raw)
                return
            reader = READERS.get(path.suffix.lower())
            if reader is None:
                raise Unusable(f"unknown type {path.suffix!r}; known: {', '.join(READERS)}, .jsonl")
            title, sections = reader(raw)
        except OSError as error:
            self._exclude(relative, f"not readable ({error.strerror})")
            return
        except Unusable as error:
            self._exclude(relative, str(error))
            return
        if sections:
            self._add(sections, (relative,), title or path.stem)
        else:
            self._exclude(relative, "empty")

    def _lines(self, path: Path, relative: str, raw: bytes) -> None:
        rows = list(_jsonl_rows(path, relative, raw))
        if not rows:
            raise Unusable("empty")
        for name, row in rows:
            title = row.get("title") or f"{path.stem} {name}"
            sections = _filled([("", row["text"])])
            if sections:
                self._add(
                    sections, (relative, name), title, row.get("url", ""), row.get("revised_at")
                )
            else:
                self._exclude(f"{relative} ({name})", "empty")


def list_files(settings: Files, base_folder: Path) -> list[Path]:
    """Files that a source reads, sorted; what kinject itself writes below the folder is none.

    Raises:
        SourceError: If the folder is missing, or a pattern is none.
    """
    folder = base_folder / settings.folder
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder. Set `folder` of the source in the profile.")
    own = config.base_folder().resolve()
    inside = own.is_relative_to(folder.resolve())
    try:
        return sorted(
            {
                path
                for pattern in settings.patterns
                for path in folder.glob(pattern)
                if path.is_file() and not (inside and path.resolve().is_relative_to(own))
            }
        )
    except (ValueError, NotImplementedError) as error:
        raise SourceError(
            f"patterns {', '.join(settings.patterns)}: {error}. Patterns are relative to the "
            "folder, e.g. **/*.txt"
        ) from error


def read_files(
    settings: Files, base_folder: Path, fetched_at: datetime, report: Report = silent
) -> tuple[list[Article], list[Exclusion]]:
    """Reads the files of a folder, one article each (one a line for jsonl).

    An article is its path below the folder (with the line's `id`, or else its line number, for
    jsonl); a revision of it is the hash of its title and text.

    Args:
        settings: Folder and patterns.
        base_folder: Where a relative folder starts from.
        fetched_at: Time that the articles carry.
        report: Told which file is being read.

    Returns:
        Articles in the order of their paths, and files that were left out with the reason.

    Raises:
        SourceError: If the folder is missing or gives no article, or a line of jsonl is wrong.
    """
    folder, paths = base_folder / settings.folder, list_files(settings, base_folder)
    reader = _Reader(settings, folder, fetched_at)
    for done, path in enumerate(paths):
        if ".." in path.relative_to(folder).parts:
            raise SourceError(f"patterns {', '.join(settings.patterns)}: `..` leaves the folder.")
        report(f"reading {path.name}", done, len(paths))
        reader.read(path)
    if not reader.articles:
        reasons = "; ".join(f"{e.title}: {e.reason}" for e in reader.exclusions[:3])
        raise SourceError(
            f"{folder}: no text found with the patterns {', '.join(settings.patterns)}"
            f"{f' ({reasons})' if reasons else ''}. Put documents there or change `patterns`."
        )
    return reader.articles, reader.exclusions
