"""What Wikipedia's templates show inside prose.

A wiki expands templates on its own machine; only their calls stand in the wikitext. The tables
here say how the arguments of a call show, after each template's documentation on the English
Wikipedia (`Template:NAME/doc`). They hold those without which a sentence has a hole. What prints
boxes, notes, marks of maintenance, pronunciation or navigation is left out of them on purpose, and
a name that is not in them is unknown: nothing is guessed.
"""

import re
from collections.abc import Callable, Mapping

Arguments = Mapping[str, str]
"""Arguments of a call as plain text; those without a name are called `1`, `2`, ..."""

UNKNOWN = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for a text that cannot be known; brackets around it are better left out with it."""

FORMS: dict[str, str] = {
    # Text with a look that plain text has not, or a hint for machines.
    "{1}": (
        "nowrap, nobr, nobreak, nowraplinks, small, smaller, big, bigger, large, larger, center, "
        "centre, abbr, abbrlink, tooltip, visible anchor, vanchor, sc, smallcaps, small caps, sub, "
        "sup, strong, em, bold, italics, nobold, noitalic, underline, mvar, math, var, bigmath, "
        "overline, code, mono, kbd, samp, not a typo, typo, proper name, as written, chem name, "
        "highlight, plainlist, plain list, flatlist, flat list, block indent, blockindent, "
        "unicode, iast, iso 15919, polytonic, nihongo2, nihongo foot, chem2, nts, "
        "number table sorting, format price, start-date, end-date, track gauge, railgauge, flag, "
        "flagu, flagcountry, flag country, flagathlete, fb, script/hebrew, script/arabic"
    ),
    "{2}": "lang, rtl-lang, script, color, colored text, font color, hidden",
    "{2|1}": "url, sort",
    "{3|2}": "transl, transliteration, xlit, wikt-lang, wt",
    "{lt|1}": "ill, interlanguage link, illm, interlanguage link multi",
    "{1} {2}": "sortname",
    "{1}-{2}": "nuclide, nuclide2, simplenuclide, simplenuclide2",
    "{1}-class {2}": "sclass, sclass2",
    "ISBN {1}": "isbn",
    "‘{1}’": "gloss",
    "lit. ‘{1}’": "lit, lit., literal, literal translation",
    "⟨{1}⟩": "angbr, angle bracket",
    "√{1}": "sqrt, radic",
    "née {1}": "née, nee",
    "né {1}": "né",
    "c. {1}[ – c. {2}]": "circa, c., ca.",
    "fl. {1}[–{2}]": "floruit, fl.",
    "r. {1}[–{2}]": "reign",
    "{1}[ (m. {2})]": "marriage",
    # Lists.
    "{*, }": "hlist, cslist",
    "{*\n}": (
        "ubl, unbulleted list, ublist, bulleted list, blist, ordered list, unordered list, "
        "collapsible list"
    ),
    "{*}": "chem, chemical formula, gaps, linktext",
    # Names in Japanese, Korean and Chinese; brackets without content are taken out afterwards.
    "{3} ({2}[, {1}][, {extra|4}])": "nihongo3",
    "{1} ({2}[, {3}][, {extra|4}])": "nihongo4",
    "Korean: {hangul|1}[; Hanja: {hanja|2}][; RR: {rr}]": "korean",
    # Quotations stand in lines of their own.
    "\n{text|quote|1}[\n— {author|sign|by|2}][, {title|3}][, {source|4}]\n": (
        "quote, blockquote, block quote, quotation, bquote, poem quote, poemquote"
    ),
    "\n{text|quote|1}[\n— {author|sign|by|4}][, {source|5}]\n": (
        "cquote, centered pull quote, centred pull quote"
    ),
    "\n{1}\n{2}\n": "verse translation",
    # Signs.
    "–": "ndash, endash, en dash, dash",
    "—": "mdash, emdash, em dash",
    " – ": "snd, spnd, sndash, spndash, spaced ndash, spaced en dash",
    " — ": "smd, spaced mdash, spaced em dash",
    "{1}–{2}": "dash year",
    "{upper}/{lower}": "dentalformula, dental formula",
    # Apart from a mark of italics before them, which they are no part of.
    "\N{WORD JOINER}'": "', apostrophe",
    "\N{WORD JOINER}'s": "'s",
    " ": "nbsp, space, spaces, spc, thinsp, thin space, hair space, gap, pad",
    " · ": "·, dot, middot",
    " • ": "•, bull, bullet",
    "=": "=",
    "|": "!, pipe",
    "⇌": "eqm",
    "−": "minus",
    "×": "times",
    # What differs from day to day.
    UNKNOWN: (
        "age, age in years, age in years and days, age in days, inflation, currentyear, "
        "currentmonth, currentmonthname, currentday"
    ),
    "C": "carbon",
    "H": "hydrogen",
    # Words in the cells of tables.
    "Yes": "yes",
    "No": "no",
    "N/A": "n/a, na",
    "Won": "won",
    "Nominated": "nom",
}
"""What is shown -> names, with `,` between them.

`{a|b}` is the first of these arguments that holds something, `{*;}` all those without a name with
`;` between them; what stands in `[...]` is left out where none of its arguments holds anything.
"""

LANGUAGES: dict[str, str] = {
    code: shown
    for code, _, shown in (
        pair.partition(":")
        for pair in (
            "ar:Arabic bg:Bulgarian bn:Bengali cs:Czech cy:Welsh da:Danish de:German el:Greek "
            "en:English eo:Esperanto es:Spanish et:Estonian eu:Basque fa:Persian fi:Finnish "
            "fr:French ga:Irish he:Hebrew hi:Hindi hr:Croatian hu:Hungarian hy:Armenian "
            "id:Indonesian is:Icelandic it:Italian ja:Japanese ka:Georgian kk:Kazakh ko:Korean "
            "la:Latin lt:Lithuanian lv:Latvian mk:Macedonian mn:Mongolian ms:Malay ne:Nepali "
            "nl:Dutch no:Norwegian pl:Polish pt:Portuguese ro:Romanian ru:Russian sa:Sanskrit "
            "sk:Slovak sl:Slovene sq:Albanian sr:Serbian sv:Swedish sw:Swahili ta:Tamil "
            "te:Telugu th:Thai tl:Tagalog tr:Turkish uk:Ukrainian ur:Urdu vi:Vietnamese "
            "zh:Chinese"
        ).split()
    )
}
"""Languages whose name `lang-CODE` puts before the text; of others the text alone is shown."""

CURRENCIES: dict[str, str] = {
    code: shown
    for code, _, shown in (
        pair.partition(":")
        for pair in (
            "USD:US$ EUR:€ GBP:£ JPY:¥ CNY:CN¥ KRW:₩ INR:₹ CAD:CA$ AUD:A$ NZD:NZ$ HKD:HK$ SGD:S$ "
            "TWD:NT$ BRL:R$ MXN:Mex$ PHP:₱ RUB:₽ UAH:₴ TRY:₺ ILS:₪ NGN:₦ VND:₫ CHF:CHF"
        ).split()
    )
}
"""Codes of currencies -> their signs; both are names of templates."""

MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
"""English, whatever the computer's language: they are parts of titles and of category names."""

UNITS: dict[str, str] = {
    "c": "°C",
    "c-change": "°C",
    "f": "°F",
    "f-change": "°F",
    "sqmi": "sq mi",
    "sqft": "sq ft",
    "sqyd": "sq yd",
    "sqkm": "km²",
    "cuft": "cu ft",
    "cuin": "cu in",
    "cumi": "cu mi",
    "usgal": "US gal",
    "impgal": "imp gal",
    "floz": "fl oz",
    "kn": "kn",
}
"""Unit codes of `convert` that are not what is shown, in small letters."""

MULTIPLES = {"e3": "thousand ", "e6": "million ", "e9": "billion ", "e12": "trillion "}
"""What `convert` writes between a number and a unit whose code begins so."""

BETWEEN = {
    "to": " to ",
    "and": " and ",
    "or": " or ",
    "x": " × ",
    "by": " × ",
    "×": " × ",
    "*": " × ",
    "-": "–",
    "–": "–",
    "+/-": " ± ",
    "±": " ± ",
}
"""What `convert` takes between two numbers of one unit -> what it shows."""

ACCIDENTALS = {"flat": "♭", "b": "♭", "sharp": "♯", "#": "♯", "natural": "♮"}
"""What `music` shows."""

RAISED = str.maketrans("0123456789+-−–()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁽⁾ⁿⁱ")

PREFIX = re.compile(r"(?:(?:subst|safesubst|template|t):\s*)+", re.IGNORECASE)
PART = re.compile(r"\[([^\[\]]*)\]|\{([^{}]*)\}")
FIELD = re.compile(r"\{([^{}]*)\}")


def raised(text: str) -> str:
    """Superscript in Unicode's signs, so that 10 to the power of 24 does not read as 1024.

    What holds anything but digits, signs and the letters `n` and `i` is given back as it is.
    """
    bare = text.replace("''", "").strip()
    return bare.translate(RAISED) if all(ord(c) in RAISED for c in bare) else text


def unnamed(arguments: Arguments) -> list[str]:
    """The arguments without a name, in their order."""
    found: list[str] = []
    while (text := arguments.get(str(len(found) + 1))) is not None:
        found.append(text)
    return found


def _first(arguments: Arguments, names: str) -> str:
    if names.startswith("*"):
        return names[1:].join(text for text in unnamed(arguments) if text)
    return next((arguments[name] for name in names.split("|") if arguments.get(name)), "")


def _fill(form: str, arguments: Arguments) -> str:
    def fields(text: str) -> str:
        return FIELD.sub(lambda field: _first(arguments, field[1]), text)

    def part(match: re.Match[str]) -> str:
        if match[1] is None:
            return _first(arguments, match[2])
        there = any(_first(arguments, names) for names in FIELD.findall(match[1]))
        return fields(match[1]) if there else ""

    return PART.sub(part, form)


def _numeric(text: str) -> bool:
    return any(c.isdigit() for c in text)


def _unit(code: str) -> str:
    multiple = re.match(r"e\d+", code)
    if multiple and multiple[0] in MULTIPLES and len(code) > len(multiple[0]):
        return MULTIPLES[multiple[0]] + _unit(code[len(multiple[0]) :])
    shown = UNITS.get(code.lower(), code)
    return re.sub(r"(?<=[a-zA-Z])[23]\b", lambda power: raised(power[0]), shown)


def _convert(arguments: Arguments) -> str:
    """The given values with their unit; what they are in other units has to be computed."""
    words = unnamed(arguments)
    shown: list[str] = []
    start = 0
    while start + 1 < len(words) and _numeric(words[start]):
        value, unit = words[start], start + 1
        while unit + 1 < len(words) and words[unit] in BETWEEN and _numeric(words[unit + 1]):
            value += BETWEEN[words[unit]] + words[unit + 1]
            unit += 2
        if unit == len(words) or (shown and _numeric(words[unit])):
            break
        shown.append(f"{value} {_unit(words[unit])}")
        start = unit + 1
    return " ".join(shown) or "".join(words[:1])


def _fraction(arguments: Arguments) -> str:
    match unnamed(arguments):
        case [below]:
            return f"1/{below}"
        case [above, below]:
            return f"{above}/{below}"
        case [whole, above, below, *_]:
            return f"{whole} {above}/{below}"
    return ""


def _value(arguments: Arguments) -> str:
    number, *bounds = unnamed(arguments) or [""]
    match bounds:
        case [digits, *_] if digits.startswith("("):
            number += digits
        case [above, below, *_] if above and below:
            number += f" +{above.lstrip('+')} −{below.lstrip('-−')}"
        case [bound, *_] if bound:
            number += f"±{bound}"
    if exponent := arguments.get("e"):
        number += f"×10{raised(exponent)}"
    unit = _first(arguments, "u|ul")
    per = _first(arguments, "up|upl")
    number = arguments.get("p", "") + number + arguments.get("s", "")
    return number + (f" {_unit(unit)}" if unit else "") + (f"/{_unit(per)}" if per else "")


def _power_of_ten(arguments: Arguments) -> str:
    return f"×10{raised(arguments.get('1', ''))}"


def _date(arguments: Arguments) -> str:
    """Day, month and year; parts may be missing, months have a name or a number."""
    year, month, day = (*unnamed(arguments), "", "", "")[:3]
    if re.fullmatch(r"0?[1-9]|1[0-2]", month):
        month = MONTHS[int(month) - 1]
    return " ".join(part for part in (day.lstrip("0") if month else "", month, year) if part)


def _as_of(arguments: Arguments) -> str:
    if text := arguments.get("alt"):
        return text
    words = "Since" if arguments.get("since") else "As of"
    words = "" if arguments.get("bare") else words.lower() if arguments.get("lc") else words
    before, after = arguments.get("pre", ""), arguments.get("post", "")
    return " ".join(part for part in (words, before, _date(arguments)) if part) + after


def _nihongo(arguments: Arguments) -> str:
    named = "{1} ({2}[, {3}][, {extra|4}])"
    return _fill(named if arguments.get("1") else "{3} ({2}[, {extra|4}])", arguments)


def _chinese(arguments: Arguments) -> str:
    forms = {
        "Chinese": "c",
        "simplified Chinese": "s",
        "traditional Chinese": "t",
        "pinyin": "p",
        "Wade–Giles": "w",
        "Jyutping": "j",
        "lit.": "l",
    }
    labelled = arguments.get("labels") != "no"
    return "; ".join(
        f"{label}: {arguments[key]}" if labelled else arguments[key]
        for label, key in forms.items()
        if arguments.get(key)
    ) or arguments.get("1", "")


def _coordinates(arguments: Arguments) -> str:
    if arguments.get("display", "inline") in {"title", "t"}:
        return ""
    words = unnamed(arguments)
    if {word.upper() for word in words}.isdisjoint("NSEW"):
        return " ".join(
            f"{word.lstrip('-−')}°{sides[word.startswith(('-', '−'))]}"
            for word, sides in zip(words, ("NS", "EW"), strict=False)
        )
    shown, marks = "", iter("°′″")
    for word in words:
        if word.upper() in set("NSEW"):
            shown, marks = f"{shown}{word.upper()} ", iter("°′″")
        elif _numeric(word) and ":" not in word:
            shown += word + next(marks, "")
    return shown.strip()


def _currency(arguments: Arguments) -> str:
    code = arguments.get("2", "USD").upper()
    return f"{CURRENCIES.get(code, f'{code} ')}{arguments.get('1', '')}"


def _sic(arguments: Arguments) -> str:
    words = unnamed(arguments)
    doubt = "?" if words[:1] == ["?"] else ""
    text = "".join(words[len(doubt) :])
    return text if arguments.get("hide") else f"{text} [sic{doubt}]".strip()


def _last(arguments: Arguments) -> str:
    return "".join(unnamed(arguments)[-1:])


def _music(arguments: Arguments) -> str:
    sign = arguments.get("1", "")
    return ACCIDENTALS.get(sign.lower(), sign)


def _in_text(arguments: Arguments) -> str:
    *authors, year = unnamed(arguments) or [""]
    return f"{' & '.join(authors)} ({year})"


COMPUTED: dict[Callable[[Arguments], str], str] = {
    _convert: "convert, cvt",
    _fraction: "frac, fraction, sfrac",
    _value: "val",
    _power_of_ten: "e",
    _date: (
        "start date, end date, birth date, death date, film date, dts, date table sorting, "
        "start date and age, end date and age, birth date and age, death date and age"
    ),
    _as_of: "as of, asof",
    _nihongo: "nihongo",
    _chinese: "zh, lang-zh",
    _coordinates: "coord",
    _currency: "currency",
    _sic: "sic",
    _last: "columns-list",
    _music: "music",
    _in_text: "harvtxt, harvcoltxt",
}
"""What makes the text -> names, where a form cannot say it."""

SHIPS = "USS HMS HMAS HMCS HMNZS RMS SS MS MV USNS USCGC INS".split()


def _table() -> dict[str, str | Callable[[Arguments], str]]:
    found: dict[str, str | Callable[[Arguments], str]] = {}
    for ship in SHIPS:
        found[ship.lower()] = ship + " {1}[ ({2})]"
    for code, sign in CURRENCIES.items():
        found |= dict.fromkeys((code.lower(), sign.lower()), sign + "{1}")
    for code, language in LANGUAGES.items():
        found[f"lang-{code}"] = language + ": {text|1}"
    for shown, names in (*FORMS.items(), *COMPUTED.items()):
        found |= dict.fromkeys(names.split(", "), shown)
    return found


SHOWN = _table()
"""Name in small letters -> form of what is shown, or what makes it."""


def shown_text(name: str, arguments: Callable[[], Arguments]) -> str | None:
    """What a call shows in prose; `None` if the name is unknown.

    Args:
        name: What stands before the first `|`, with single spaces.
        arguments: Gives the arguments; asked only where they are needed.
    """
    name = name[prefix.end() :] if (prefix := PREFIX.match(name)) else name
    head, colon, subject = name.partition(":")
    if colon:
        return _function(head.strip().lower(), subject.strip(), arguments)
    name = name.lower().replace("_", " ")
    if name == "langx":
        given = arguments()
        name, text = f"lang-{given.get('1', '').lower()}", _first(given, "text|2")
        return shown_text(name, lambda: {"1": text})
    shown = SHOWN.get(name)
    if shown is None and name.startswith("lang-"):
        shown = "{text|1}"
    if shown is None:
        return None
    return _fill(shown, arguments()) if isinstance(shown, str) else shown(arguments())


NOTES = frozenset(
    "efn, efn-ua, efn-lr, efn-la, efn-lg, refn, notetag, note tag, #tag:ref".split(", ")
)
"""Templates that hold a footnote as their first argument."""

SHORT_NOTES = frozenset("sfn sfnp sfnm harv harvnb harvp harvcol harvcolnb".split())
"""Templates that refer to a work by authors and year."""

SILENT = frozenset("anchor, anchors, rp, r, respell, clear, shy, wbr, zwj".split(", "))
"""Templates whose arguments are no text for readers: places to jump to, pronunciation."""

SILENT_FAMILIES = ("ipa", "pp-", "use ", "toc ")
"""Beginnings of names of such templates."""

BOX = re.compile(r"infobo[xk]|taxobox|(?:species|chem|drug|weather ?)box|^geobox|^ficha\b")
"""Names of templates that print a table of facts beside the text."""

CITATION = re.compile(r"cite |citation$|cita |lien web|ouvrage|literatur$|internetquelle|harvc$")
"""Beginnings of names of templates that describe a work."""

TECHNICAL_WORDS = frozenset(
    "url access accessdate archive archiveurl archivedate image img bgcolor bgcolour color colour "
    "style titlestyle align class upright ref mode bot reason direction".split()
)
"""Words in names of arguments that steer how something looks, or say where it is kept."""

TECHNICAL_KEYS = frozenset({"alt", "date"})
"""Names of arguments that do so when they are nothing but this."""

TECHNICAL_VALUE = re.compile(
    r"(?:https?:)?//\S+|.*\.(?:jpe?g|png|svg|gif|og[gv]|webm|webp|tiff?|pdf)|[\d.]+(?:px|em|pt|%)"
    r"|#[0-9a-f]{3,8}|yes|no|y|n|on|off|true|false|none|auto|left|right|center|top|bottom"
    r"|vertical|horizontal|collapsed|section",
    re.IGNORECASE,
)
"""What is no text for readers, wherever it stands."""


def kept_arguments(arguments: Arguments, *, keys: bool) -> list[str]:
    """Texts of the arguments of a call that nothing else is known about.

    Args:
        arguments: Of the call.
        keys: Put the name of an argument before its text.
    """
    found: list[str] = []
    for key, text in arguments.items():
        line = "; ".join(part for part in map(str.strip, text.splitlines()) if part)
        words = re.split(r"[-_ 0-9]+", key.lower())
        if key in TECHNICAL_KEYS or not TECHNICAL_WORDS.isdisjoint(words):
            continue
        if not line or TECHNICAL_VALUE.fullmatch(line):
            continue
        found.append(f"{key.replace('_', ' ')}: {line}" if keys and not key.isdigit() else line)
    return found


def short_note(arguments: Arguments) -> str:
    """Authors, year and place in the work, as `sfn` prints them among the notes."""
    *authors, year = unnamed(arguments) or [""]
    place = _fill("[, p. {p|page}][, pp. {pp|pages}][, {loc|at}]", arguments)
    return f"{' & '.join(authors)} {year}{place}".strip()


def citation(arguments: Arguments) -> str:
    """Authors, year, title and where it was published, in the order of citations."""
    authors: list[str] = []
    for number in ("", *map(str, range(1, 10))):
        last = _first(arguments, f"last{number}|author{number}|surname{number}|author-last{number}")
        first = _first(arguments, f"first{number}|given{number}|author-first{number}")
        authors += [", ".join(part for part in (last, first) if part)] if last else []
    people = "; ".join(dict.fromkeys(authors)) or _first(arguments, "vauthors|authors|editor")
    date = _first(arguments, "year|date")
    parts = [
        people,
        date if people else "",
        _first(arguments, "chapter|contribution|entry|article"),
        _fill("{title|titre|titel}[ ({trans-title})]", arguments),
        _first(arguments, "work|journal|newspaper|magazine|website|encyclopedia|periodical"),
        _first(arguments, "publisher|publication|institution|agency"),
        _fill("[vol. {volume}][ no. {issue|number}]", arguments),
        _fill("[p. {page|p}][pp. {pages|pp}]", arguments),
        "" if people else date,
        _first(arguments, "quote"),
    ]
    found = [part for part in (" ".join(part.split()).rstrip(".") for part in parts) if part]
    return ". ".join(found) + "." if found else ", ".join(kept_arguments(arguments, keys=False))


def _function(name: str, subject: str, arguments: Callable[[], Arguments]) -> str | None:
    """What a parser function gives, of those that need nothing but their arguments."""
    match name:
        case "#if":
            return arguments().get("1" if subject else "2", "")
        case "#ifeq":
            given = arguments()
            return given.get("2" if subject == given.get("1", "") else "3", "")
        case "#switch":
            given = arguments()
            return given.get(subject, given.get("#default", _last(given)))
        case "formatnum":
            return f"{int(subject):,}" if re.fullmatch(r"[0-9]{1,40}", subject) else subject
        case "lc":
            return subject.lower()
        case "uc":
            return subject.upper()
        case "lcfirst":
            return subject[:1].lower() + subject[1:]
        case "ucfirst":
            return subject[:1].upper() + subject[1:]
    return None
