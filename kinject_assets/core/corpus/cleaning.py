"""Wikitext to plain text by section."""

import re
import unicodedata
from typing import TYPE_CHECKING, Any

from kinject_assets.config import Cleaning
from kinject_assets.core.corpus.articles import Section

if TYPE_CHECKING:
    from mwparserfromhell.nodes import Tag, Template, Wikilink

DROPPED_TAGS = frozenset(
    "ref references gallery script style templatestyles timeline imagemap score graph mapframe "
    "maplink hiero categorytree inputbox indicator includeonly section pagelist chart".split()
)
"""Tags without prose: left out with what they hold."""

BREAKING_TAGS = frozenset("p div blockquote center poem pre ul ol dl li dt dd".split())
"""Tags that end a line."""

HIDDEN_NAMESPACES = frozenset(
    "file image media category datei bild fichier archivo imagen immagine bestand ficheiro plik "
    "kategorie catégorie categoría categoria categorie kategoria файл категория".split()
)
"""Namespaces of links that show no text of their own, in English and other large Wikipedias."""

LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z-]{2,})?:\S")
"""Link to the same article in another language, e.g. `de:Astronomie`."""

SHOWN_TEMPLATES: dict[str, tuple[str, ...]] = {
    "nowrap": ("1",),
    "nobr": ("1",),
    "lang": ("2",),
    "abbr": ("1",),
    "convert": ("1", "2"),
    "cvt": ("1", "2"),
    "val": ("1",),
    "mvar": ("1",),
    "math": ("1",),
    "chem": ("1", "2", "3", "4", "5", "6"),
}
"""Templates inside sentences whose arguments are the text: without them a sentence has a hole."""

TAG_IN_TEXT = re.compile(
    r"</?(?:ref|references|gallery|br|div|span|small|big|p|b|i|u|s|sub|sup|center|font|blockquote|"
    r"nowiki|table|tr|td|th|li|ul|ol|noinclude|includeonly|onlyinclude|code|pre|math|poem)\b[^<>]*>",
    re.IGNORECASE,
)
BROKEN_TABLE_LINE = re.compile(r"^\s*(?:\{\||\|).*$", re.MULTILINE)
LEFT_MARKS = re.compile(r"\[\[|\]\]|\{\{+|\}\}+|\{\||'{2,}|</?ref\b[^<>\n]*>|</?ref", re.IGNORECASE)
SWITCH = re.compile(r"__[A-Z]{3,}__")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")


class _Renderer:
    """Turns parsed wikitext into text."""

    def __init__(self, settings: Cleaning) -> None:
        self.keep_tables = settings.keep_tables

    def text(self, code: Any) -> str:
        """Text of a tree; `None` (an absent part) is empty."""
        return "" if code is None else "".join(self._node(node) for node in code.nodes)

    def _node(self, node: Any) -> str:
        from mwparserfromhell import nodes

        match node:
            case nodes.Text():
                return TAG_IN_TEXT.sub("", SWITCH.sub("", node.value))
            case nodes.Tag():
                return self._tag(node)
            case nodes.Wikilink():
                return self._link(node)
            case nodes.ExternalLink():
                if node.title is not None:
                    return self.text(node.title)
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

    def _tag(self, tag: "Tag") -> str:
        name = str(tag.tag).strip().lower()
        if tag.wiki_markup and name in {"li", "dt", "dd"}:
            return ""  # The mark of a list's line, which already stands on a line of its own.
        hidden = any(
            str(a.name).strip().lower() == "style"
            and "display:none" in str(a.value).lower().replace(" ", "")
            for a in tag.attributes
        )
        if name in DROPPED_TAGS or hidden:
            return ""
        if name == "table":
            return f"\n{self._rows(tag)}\n" if self.keep_tables else ""
        if name in {"math", "chem", "ce"}:
            return str(tag.contents).replace("{{", "{ {").replace("}}", "} }")
        if name in {"br", "hr"}:
            return "\n"
        inner = self.text(tag.contents)
        return f"\n{inner}\n" if name in BREAKING_TAGS else inner

    def _rows(self, table: "Tag") -> str:
        def cells(row: Any) -> str:
            found = [
                " ".join(self.text(cell.contents).split())
                for cell in row.contents.filter_tags(
                    recursive=False, matches=lambda t: str(t.tag) in {"td", "th"}
                )
            ]
            return " | ".join(cell for cell in found if cell)

        rows = table.contents.filter_tags(recursive=False, matches=lambda t: str(t.tag) == "tr")
        # Cells before the first row mark stand in the table itself.
        return "\n".join(line for line in (cells(table), *map(cells, rows)) if line)

    def _link(self, link: "Wikilink") -> str:
        target = str(link.title).strip()
        prefix = target.partition(":")[0].strip().lower() if ":" in target else ""
        if prefix in HIDDEN_NAMESPACES or LANGUAGE_LINK.match(target):
            return ""
        if link.text is not None and str(link.text).strip():
            return self.text(link.text)
        return self.text(link.title).strip().lstrip(":")

    def _template(self, template: "Template") -> str:
        name = " ".join(str(template.name).split()).lower()
        if self.keep_tables and name.startswith(("infobox", "taxobox", "chembox")):
            lines = (
                (str(p.name).strip().replace("_", " "), " ".join(self.text(p.value).split()))
                for p in template.params
            )
            return "\n" + "\n".join(f"{key}: {value}" for key, value in lines if value) + "\n"
        shown = SHOWN_TEMPLATES.get(name, ())
        parts = [self.text(template.get(key).value).strip() for key in shown if template.has(key)]
        return ("" if name == "chem" else " ").join(parts)


def _tidy(text: str) -> str:
    """Removes what broken markup left, and the spaces where something was taken out."""
    text = BROKEN_TABLE_LINE.sub("", text)
    # Taking a mark out can bring the halves of another one together.
    while (shorter := LEFT_MARKS.sub("", text)) != text:
        text = shorter
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r"\(\s*[,;]\s*", "(", text)
    text = re.sub(r" \(\s*\)", "", text)
    text = re.sub(r" +([,;.)])(?=[\s)]|$)", r"\1", text)
    lines = (line.strip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def clean(wikitext: str, settings: Cleaning) -> list[Section]:
    """Plain text of an article, by section, without markup.

    Templates, references, tables, comments, files, galleries, categories and links to other
    languages are left out; text of links, lists (an item a line) and formulas is kept. Sections
    without text, and those that `settings.drop_sections` names with all that is below them, are
    left out.

    Args:
        wikitext: Source of the page; any string.
        settings: What to keep.
    """
    import mwparserfromhell
    from mwparserfromhell.nodes import Heading

    renderer = _Renderer(settings)
    dropped = {name.strip().casefold() for name in settings.drop_sections}
    sections: list[tuple[str, list[str]]] = [("", [])]
    dropping = 7  # Level of the section being left out; 7 is below every heading.
    for node in mwparserfromhell.parse(wikitext).nodes:
        if isinstance(node, Heading):
            heading = " ".join(_tidy(renderer.text(node.title)).split())
            if node.level <= dropping:
                dropping = node.level if heading.casefold() in dropped else 7
            sections.append((heading, []))
        elif dropping == 7:
            sections[-1][1].append(renderer._node(node))
    tidied = ((heading, _tidy("".join(parts))) for heading, parts in sections)
    return [(heading, body) for heading, body in tidied if body]
