"""Wikitext to plain text by section."""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kinject_assets.config import Cleaning
from kinject_assets.core.corpus import templates
from kinject_assets.core.corpus.articles import Section

if TYPE_CHECKING:
    from mwparserfromhell.nodes import Tag, Template, Wikilink

DROPPED_TAGS = frozenset(
    "references gallery script style templatestyles timeline imagemap score graph mapframe "
    "maplink hiero categorytree inputbox indicator includeonly section pagelist chart".split()
)
"""Tags without prose: left out with what they hold."""

BREAKING_TAGS = frozenset("p div blockquote center poem pre ul ol dl li dt dd".split())
"""Tags that end a line."""

LITERAL_TAGS = frozenset("nowiki pre source syntaxhighlight".split())
"""Tags whose content is no wikitext."""

FORMULA_TAGS = frozenset("math chem ce".split())

HIDDEN_NAMESPACES = frozenset(
    "file image media category datei bild fichier archivo imagen immagine bestand ficheiro plik "
    "kategorie catégorie categoría categoria categorie kategoria файл категория".split()
)
"""Namespaces of links that show no text of their own, in English and other large Wikipedias."""

LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z-]{2,})?:\S")
"""Link to the same article in another language, e.g. `de:Astronomie`."""

TAG_IN_TEXT = re.compile(
    r"</?(?:abbr|b|bdi|bdo|big|blockquote|br|caption|center|cite|code|dd|del|dfn|div|dl|dt|em|font|"
    r"gallery|h[1-6]|hr|i|includeonly|ins|kbd|li|mark|math|noinclude|nowiki|ol|onlyinclude|p|poem|"
    r"pre|q|ref|references|ruby|s|samp|small|span|strike|strong|sub|sup|table|td|th|tr|tt|u|ul|var)"
    r"\b[^<>]*>",
    re.IGNORECASE,
)
"""Tags that the parser left in text because their other half is missing."""

SWITCH = re.compile(r"__[A-Z]{3,}__")
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]"
)
"""Signs without a look, and those that no file or database takes."""

UNKNOWN = re.compile(
    rf"\([^()\n{templates.UNKNOWN}]*{templates.UNKNOWN}[^()\n]*\)|{templates.UNKNOWN}"
)
TOUCHING = re.compile(r"(?<=[\[\]{}|'])(?=[\[\]{}|'])")
QUOTES = re.compile(r"('{2,})")

UNCLOSED_FILE = re.compile(
    rf"\[\[[ \t]*(?:{'|'.join(sorted(HIDDEN_NAMESPACES))})[ \t]*:"
    r"(?:(?:[^|\n\[\]]*\|)+|[^|\n\[\]]*)",
    re.IGNORECASE,
)
LEFT_MARKS = re.compile(
    # Links, templates, tables, italics, notes, headings, and rows of tables up to their end.
    r"\[\[|\]\]|\{\{+|\}\}+|\{\||\|\}|'{2,}|</?ref\b[^<>\n]*>|</?ref|&nbsp;"
    r"|^[^\S\n]*={2,}|(?<!=)={2,}[^\S\n]*$|^[^\S\n]*[|!].*$",
    re.IGNORECASE | re.MULTILINE,
)
MANY_PASSES = 20
"""Rounds of taking marks out after which brackets go altogether, so that the work ends."""

DEEP_LIST = re.compile(r"^([*#:;]{20})[*#:;]+", re.MULTILINE)
"""Marks of a list deeper than any: each costs the parser as much as a link."""

DEEPEST = 30
"""Levels of tags, links and templates that are read: Python's stack is finite."""

CLOSED_BY = {"{{": "}}", "[[": "]]", "{|": "|}", "[": "]", "<!--": "-->"}
UNPAIRED_TAGS = frozenset("br hr wbr li dt dd tr td th".split())
MARK = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|(?P<address>\[)(?:[a-z]+:)?//|\]|<!--|-->"
    r"|^[^\S\n]*(?P<table>\{\||\|\}(?!\}))|<(?P<tag>/?[a-z]+)\b(?:[^<>]*>)?",
    re.IGNORECASE | re.MULTILINE,
)
PARSER_WORK = 20_000_000
"""Signs that the parser may read again in vain: some seconds."""

PIECE = 1000
"""Signs of a piece, where a page would be too much work as a whole."""


class _Renderer:
    """Turns parsed wikitext into text.

    Args:
        settings: What to keep.
        named: Name -> content of the notes that the page defines by a name.
    """

    def __init__(self, settings: Cleaning, named: Mapping[str, Any]) -> None:
        self.settings = settings
        self.named = named
        self.met: set[str] = set()
        self.notes: list[str] = []
        self.in_note = False
        self.depth = 0

    def text(self, code: Any) -> str:
        """Text of a tree; `None` (an absent part) is empty."""
        if code is None:
            return ""
        if self.depth == DEEPEST:
            return TAG_IN_TEXT.sub("", str(code))
        self.depth += 1
        text = "".join([self.node(node) for node in code.nodes])
        self.depth -= 1
        return text

    def node(self, node: Any) -> str:
        """Text of a part of a tree."""
        from mwparserfromhell import nodes

        match node:
            case nodes.Text():
                return TAG_IN_TEXT.sub("", SWITCH.sub("", node.value))
            case nodes.Tag():
                return _apart(self._tag(node))
            case nodes.Wikilink():
                return _apart(self._link(node))
            case nodes.ExternalLink():
                if node.title is not None:
                    return _apart(self.text(node.title))
                return "" if node.brackets else str(node.url)
            case nodes.Template():
                return self._template(node)
            case nodes.HTMLEntity():
                return node.normalize()
            case nodes.Argument():
                return self.text(node.default)
            case nodes.Heading():
                return f"\n{self.text(node.title)}\n"
        return ""

    def taken_notes(self) -> list[str]:
        """Notes met since the last call, each text once."""
        taken = list(dict.fromkeys(self.notes))
        self.notes.clear()
        return taken

    def _tag(self, tag: "Tag") -> str:
        name = _name(tag)
        if tag.wiki_markup and name in {"li", "dt", "dd"}:
            return ""  # The mark of a list's line, which already stands on a line of its own.
        hidden = any(
            str(a.name).strip().lower() == "style"
            and "display:none" in str(a.value).lower().replace(" ", "")
            for a in tag.attributes
        )
        if name in DROPPED_TAGS or hidden:
            return ""
        if name == "ref":
            return self._reference(tag)
        if name == "table":
            return f"\n{self._rows(tag)}\n" if self.settings.keep_tables else ""
        if name in FORMULA_TAGS:
            # TeX takes blanks between its signs; without them some read as marks of wikitext.
            formula = TOUCHING.sub(" ", " ".join(str(tag.contents).split()))
            return f"{{}}{formula}" if formula.startswith(("|", "!")) else formula
        if name in {"br", "hr"}:
            return "\n"
        literal = name in LITERAL_TAGS
        inner = html.unescape(str(tag.contents)) if literal else self.text(tag.contents)
        if name == "sup":
            return templates.raised(inner)
        return f"\n{inner}\n" if name in BREAKING_TAGS else inner

    def _rows(self, table: "Tag") -> str:
        def cells(row: Any) -> list[Any]:
            return row.contents.filter_tags(
                recursive=False, matches=lambda t: str(t.tag) in {"td", "th"}
            )

        def line(found: list[Any]) -> str:
            texts = (" ".join(self.text(cell.contents).split()) for cell in found)
            return " | ".join(text for text in texts if text)

        # Cells before the first row mark stand in the table itself; the parser takes `|+`, the
        # caption, for one.
        captions, first = [], []
        for cell in cells(table):
            (captions if str(cell.contents).startswith("+") else first).append(cell)
        rows = table.contents.filter_tags(recursive=False, matches=lambda t: str(t.tag) == "tr")
        lines = [
            *(line([caption]).removeprefix("+").strip() for caption in captions),
            line(first),
            *(line(cells(row)) for row in rows),
        ]
        return "\n".join(text for text in lines if text)

    def _link(self, link: "Wikilink") -> str:
        target = str(link.title).strip()
        prefix = target.partition(":")[0].strip().lower() if ":" in target else ""
        if prefix in HIDDEN_NAMESPACES or LANGUAGE_LINK.match(target):
            return ""
        if link.text is not None and str(link.text).strip():
            return self.text(link.text)
        # `[[a{{!}}b]]` shows `b`.
        return self.text(link.title).strip().lstrip(":").rpartition("|")[2]

    def _arguments(self, template: "Template") -> dict[str, str]:
        return {str(p.name).strip(): self.text(p.value).strip() for p in template.params}

    def _template(self, template: "Template") -> str:
        name = " ".join(self.text(template.name).split())
        shown = templates.shown_text(name, lambda: self._arguments(template))
        if shown is not None:
            return shown
        name = name.lower().replace("_", " ")
        if name in templates.NOTES:
            return self._note(template.get("1").value if template.has("1") else None)
        if name in templates.SHORT_NOTES:
            return self._short_note(template)
        if templates.CITATION.match(name):
            kept = self.settings.keep_references
            return templates.citation(self._arguments(template)) if kept else ""
        if templates.BOX.search(name):
            kept = self.settings.keep_tables
            return self._lines(template) if kept else ""
        if name in templates.SILENT or name.startswith(templates.SILENT_FAMILIES):
            return ""
        if self.in_note or self.settings.keep_templates:
            several = "\n" in str(template) and not self.in_note
            return self._lines(template) if several else self._words(template)
        return ""

    def _lines(self, template: "Template") -> str:
        found = templates.kept_arguments(self._arguments(template), keys=True)
        return "".join(f"\n{line}" for line in found) + "\n"

    def _words(self, template: "Template") -> str:
        keys = not self.in_note
        return ", ".join(templates.kept_arguments(self._arguments(template), keys=keys))

    def _reference(self, tag: "Tag") -> str:
        name = _reference_name(tag)
        if name and name in self.met:
            return ""
        self.met.add(name)
        written = tag.contents is not None and str(tag.contents).strip()
        return self._note(tag.contents if written else self.named.get(name))

    def _short_note(self, template: "Template") -> str:
        if not self.settings.keep_references:
            return ""
        text = templates.short_note(self._arguments(template))
        if self.in_note:
            return text
        self.notes.append(text)
        return ""

    def _note(self, content: Any) -> str:
        if not self.settings.keep_references:
            return ""
        outer, self.in_note = self.in_note, True
        text = " ".join(self.text(content).split())
        self.in_note = outer
        if text:
            self.notes.append(text)
        return ""


def _apart(text: str) -> str:
    """A text whose apostrophes do not run together with those around it."""
    touching = text.startswith("'") or text.endswith("'")
    return f"\N{WORD JOINER}{text}\N{WORD JOINER}" if touching else text


def _name(tag: "Tag") -> str:
    return str(tag.tag).strip().lower()


def _reference_name(tag: "Tag") -> str:
    return str(tag.get("name").value).strip().strip("\"'") if tag.has("name") else ""


def _named_references(parsed: Iterable[Any]) -> dict[str, Any]:
    """Name -> content of the footnotes of a page that have a name."""
    found: dict[str, Any] = {}
    for code in parsed:
        for tag in code.ifilter_tags(matches=lambda tag: _name(tag) == "ref"):
            if tag.contents is not None and str(tag.contents).strip():
                found.setdefault(_reference_name(tag), tag.contents)
    return found


def _unclosed(wikitext: str) -> int:
    """How many templates, links, tables and tags are opened and not closed."""
    waiting: list[str] = []
    for match in MARK.finditer(wikitext):
        mark = (match["table"] or match["address"] or match["tag"] or match[0]).lower()
        if waiting and mark == waiting[-1]:
            waiting.pop()
        elif mark in CLOSED_BY:
            waiting.append(CLOSED_BY[mark])
        elif match["tag"] and mark[0] != "/" and mark not in UNPAIRED_TAGS:
            waiting += [] if match[0].endswith("/>") else [f"/{mark}"]
    return len(waiting)


def _pieces(wikitext: str) -> list[str]:
    """The page as a whole, or in pieces where the parser would need very long for it.

    What is opened and never closed makes the parser read on to the end of the page and come back.
    """
    # The parser would stop at a zero.
    wikitext = DEEP_LIST.sub(r"\1", wikitext.replace("\0", ""))
    if _unclosed(wikitext) * len(wikitext) <= PARSER_WORK:
        return [wikitext]
    pieces: list[str] = [""]
    for line in wikitext.splitlines(keepends=True):
        for start in range(0, len(line), PIECE):
            part = line[start : start + PIECE]
            if len(pieces[-1]) + len(part) > PIECE:
                pieces.append("")
            pieces[-1] += part
    return pieces


def _without_quotes(line: str) -> str:
    """A line without the marks of italics (2 apostrophes) and bold (3), and with true apostrophes.

    As MediaWiki reads them: of 4 the first is an apostrophe, and where neither the italics nor the
    bold of a line come out even, one of the bold marks is an apostrophe with italics after it: one
    after a word of a single letter, else one after a longer word, else one after a blank.
    """
    pieces = QUOTES.split(line)
    lengths = {at: len(pieces[at]) for at in range(1, len(pieces), 2)}
    apostrophes = {at: 1 if n == 4 else max(0, n - 5) for at, n in lengths.items()}
    bold = [at for at, n in lengths.items() if n > 2]
    italics = [at for at, n in lengths.items() if n == 2 or n > 4]

    def rank(at: int) -> int:
        before = pieces[at - 1]
        if before.endswith(" "):
            return 2
        return 0 if before[-2:-1] == " " else 1

    candidates = [at for at in bold if lengths[at] < 5]
    if len(bold) % 2 and len(italics) % 2 and candidates:
        apostrophes[min(candidates, key=rank)] += 1
    return "".join(
        "'" * apostrophes[at] if at in apostrophes else piece for at, piece in enumerate(pieces)
    )


def _tidy(text: str) -> str:
    """Removes what broken markup left, and the blanks where something was taken out."""
    text = "\n".join(_without_quotes(line) for line in text.splitlines())
    text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    text = UNCLOSED_FILE.sub("", text)
    text = UNKNOWN.sub("", text)
    text = re.sub(r"[^\S\n]+", " ", text.replace("&nbsp;", " "))
    text = re.sub(r"\( ?(?:[,;:] ?)*", "(", text)
    text = re.sub(r"(?<![,; ])(?: ?[,;])+ ?\)", ")", text)
    text = re.sub(r" \( ?\)", "", text)
    text = re.sub(r" ([,;.)])(?=[\s)]|$)", r"\1", text)
    for _ in range(MANY_PASSES):
        # Taking a mark out can bring the halves of another one together.
        shorter = LEFT_MARKS.sub("", text)
        if shorter == text:
            break
        text = shorter
    else:
        text = re.sub(r"[\[\]{}|!<=&]|''+", "", text)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    kept = (line if any(map(str.isalnum, line)) else "" for line in lines)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def clean(wikitext: str, settings: Cleaning) -> list[Section]:
    """Plain text of an article, by section, without markup.

    References, tables, comments, files, galleries, categories, links to other languages and the
    templates that print no prose are left out; text of links, lists (an item a line) and formulas
    is kept. Sections without text, and those that `settings.drop_sections` names with all that is
    below them, are left out.

    With `settings.keep_tables` a row of a table or a line of an infobox becomes a line. With
    `settings.keep_references` the footnotes of a section stand at its end, one a line, each where
    it is first cited. With `settings.keep_templates` a template that nothing is known about shows
    the texts of its arguments.

    Args:
        wikitext: Source of the page; any string.
        settings: What to keep.
    """
    import mwparserfromhell
    from mwparserfromhell.nodes import Heading

    # Italics and bold are read line by line afterwards: a mark without its twin would otherwise
    # hide the templates and links after it.
    parsed = [mwparserfromhell.parse(piece, skip_style_tags=True) for piece in _pieces(wikitext)]
    renderer = _Renderer(settings, _named_references(parsed) if settings.keep_references else {})
    dropped = {name.strip().casefold() for name in settings.drop_sections}
    sections: list[tuple[str, list[str]]] = [("", [])]
    dropping = 7  # Level of the section being left out; 7 is below every heading.
    for node in (node for code in parsed for node in code.nodes):
        if isinstance(node, Heading):
            sections[-1][1].extend(f"\n{note}" for note in renderer.taken_notes())
            heading = " ".join(_tidy(renderer.text(node.title)).split())
            if node.level <= dropping:
                dropping = node.level if heading.casefold() in dropped else 7
            sections.append((heading, []))
        elif dropping == 7:
            sections[-1][1].append(renderer.node(node))
    sections[-1][1].extend(f"\n{note}" for note in renderer.taken_notes())
    tidied = ((heading, _tidy("".join(parts))) for heading, parts in sections)
    return [(heading, body) for heading, body in tidied if body]
