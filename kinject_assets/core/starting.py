"""A profile for a folder of documents: the shipped `own-corpus` with its lines filled in."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kinject_assets.config import PROFILES, Files, base_folder, load_profile, shipped
from kinject_assets.core.corpus.files import read_files
from kinject_assets.core.errors import ProfileError
from kinject_assets.core.progress import Report, silent

TEMPLATE = PROFILES / "own-corpus.yaml"


LAB = "lab"
"""Address that stands for the embedded lab's server."""


@dataclass(frozen=True)
class Choices:
    """What a profile has otherwise than the example; `None` leaves that as it is.

    Attributes:
        llm_model: The service's name of the model that writes.
        base_url: Address of the service; `lab` is the embedded lab's.
        budget_usd: Sum that is not crossed; without one, services at an address of their own have
            no limit, as nothing is known of their prices.
        encoder: Folder, hub id or `lab:NAME`.
        chunking: Tokenizer, longest and shortest chunk that is asked about.
    """

    llm_model: str | None = None
    base_url: str | None = None
    budget_usd: float | None = None
    encoder: str | None = None
    chunking: tuple[str, int, int] | None = None


def slug(text: str, dots: bool = True) -> str:
    """A short name for profiles, partition keys and folders: lower-case letters, digits, `-`, `.`.

    Args:
        text: Any text.
        dots: Whether dots may stay; a model's name has none.
    """
    kept = re.sub(r"[^a-z0-9.]+" if dots else r"[^a-z0-9]+", "-", text.lower())
    return kept.strip("-.")[:40].rstrip("-.") or "my-texts"


def write_profile(
    folder: Path,
    model: str,
    out: Path,
    report: Report = silent,
    choices: Choices = Choices(),
) -> tuple[Path, list[str]]:
    """Reads a folder of documents and writes an annotated profile for it.

    Args:
        folder: Holds txt, Markdown, HTML, PDF or jsonl files, at any depth.
        model: Folder with safetensors, a hub id, or `lab:NAME`.
        out: File to write; nothing is overwritten.
        report: Told which file is being read.
        choices: What else is filled in.

    Returns:
        The file, and lines for people: what was found, and what was left out and why.

    Raises:
        SourceError: If the folder is missing or holds no text that can be read.
        ProfileError: If the file, or a study of its name, is there already, or the model lies among
            the documents.
    """
    if out.exists():
        raise ProfileError(f"{out}: is there already. Give another name with --out.")
    folder, out = folder.resolve(), out.absolute()
    study = slug(out.stem)
    if study in shipped() or (base_folder() / study).exists():
        raise ProfileError(
            f"{study}: there is a study of this name already, and two would share their results. "
            "Give another file name with --out."
        )
    if Path(model).is_dir() and Path(model).resolve().is_relative_to(folder):
        raise ProfileError(
            f"{model}: lies among the documents, so its files would be read as some of them. Move "
            "the model out of the folder."
        )
    source = Files(kind="files", folder=folder)
    articles, excluded = read_files(source, Path(), datetime.now(UTC), report)
    corpus, name = slug(folder.name), model_name(model)
    values = {
        "name: own-corpus ": f"name: {_quoted(study)} ",
        "description: A folder of documents and one small model.": "description: "
        + _quoted(f"{folder.name} and {Path(model).name}")
        + (_LAB_PART if choices.base_url == LAB else ""),
        "  handbook: ": f"  {_quoted(corpus)}: ",
        "    title: Our handbook": f"    title: {_quoted(folder.name)}",
        "      folder: documents ": f"      folder: {_quoted(_shown(folder, out.parent))} ",
        "--corpus handbook": f"--corpus {corpus}",
        "  small: ": f"  {_quoted(name)}: ",
        "    source: HuggingFaceTB/SmolLM2-135M": f"    source: {_source(model, out)}",
        "corpora: [handbook]": f"corpora: [{_quoted(corpus)}]",
        "models: [small]": f"models: [{_quoted(name)}]",
        **_chosen(choices, out),
    }
    # In one pass: what is filled in may read like another line of the example.
    example = re.compile("|".join(map(re.escape, values)))
    text = example.sub(lambda found: values[found[0]], TEMPLATE.read_text(encoding="utf-8"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    try:
        load_profile(str(out))
    except ProfileError:
        out.unlink()
        raise
    characters = sum(len(body) for article in articles for body in article.bodies)
    found = [f"{len(articles)} articles, {characters:,} characters"]
    reasons = Counter(exclusion.reason for exclusion in excluded)
    found += [f"left out: {n} ({reason})" for reason, n in reasons.most_common(5)]
    return out, found


def model_name(model: str) -> str:
    """Short name of a model by its source."""
    return slug(Path(model.removeprefix("lab:")).name, dots=False)


_LAB_PART = """

# The embedded lab's server stands in for a language model: it works by rule, and what it writes is
# to try things out with, not to judge a model by.
lab: {seed: 1}"""


def _chosen(choices: Choices, out: Path) -> dict[str, str]:
    """Lines of the example -> what stands in their place."""
    found: dict[str, str] = {}
    if choices.llm_model:
        line = f"  model: {_quoted(choices.llm_model)}"
        if choices.base_url == LAB:
            line += f"\n  prices: {{{_quoted(choices.llm_model)}: [0, 0]}}"
        found["  model: gpt-4o-mini-2024-07-18"] = line
    if choices.base_url:
        found["  # base_url: http://127.0.0.1:8000/v1"] = f"  base_url: {_quoted(choices.base_url)}"
    if choices.budget_usd is not None:
        found["  budget_usd: 5 "] = f"  budget_usd: {choices.budget_usd:g} "
    elif choices.base_url:
        found["  budget_usd: 5 "] = "  # budget_usd: 5 "
    if choices.encoder:
        found["encoder: {model: BAAI/bge-small-en-v1.5}"] = (
            f"encoder: {{model: {_source(choices.encoder, out)}}}"
        )
    if choices.chunking:
        tokenizer, most, least = choices.chunking
        found["{tokenizer: words, max_tokens: 200, min_tokens: 30}"] = (
            f"{{tokenizer: {_source(tokenizer, out)}, max_tokens: {most}, min_tokens: {least}}}"
        )
    return found


def _source(name: str, out: Path) -> str:
    """A model, encoder or tokenizer as the profile `out` names it."""
    local = Path(name).is_dir()
    return _quoted(_shown(Path(name).resolve(), out.parent) if local else name)


def _quoted(text: str) -> str:
    """A text as YAML reads it back: `on` and `2024` are no names without quotation marks."""
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    # JSON writes what lies beyond the first plane as two halves, which YAML does not put together,
    # and leaves the one as it is that YAML refuses.
    if ord(character) > 0xFFFF:
        return f"\\U{ord(character):08x}"
    return json.dumps(character)[1:-1].replace("\x7f", "\\x7f")


def _shown(path: Path, base: Path) -> str:
    """A path, relative to the profile's folder where it lies below it."""
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()
