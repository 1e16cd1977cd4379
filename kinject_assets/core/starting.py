"""A profile for a folder of documents: the shipped `own-corpus` with its lines filled in."""

import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from kinject_assets.config import PROFILES, Files, load_profile
from kinject_assets.core.corpus.files import read_files
from kinject_assets.core.errors import ProfileError
from kinject_assets.core.progress import Report, silent

TEMPLATE = PROFILES / "own-corpus.yaml"


def slug(text: str, dots: bool = True) -> str:
    """A short name for profiles, partition keys and folders: lower-case letters, digits, `-`, `.`.

    Args:
        text: Any text.
        dots: Whether dots may stay; a model's name has none.
    """
    kept = re.sub(r"[^a-z0-9.]+" if dots else r"[^a-z0-9]+", "-", text.lower())
    return kept.strip("-.")[:40].rstrip("-.") or "my-texts"


def write_profile(
    folder: Path, model: str, out: Path, report: Report = silent
) -> tuple[Path, list[str]]:
    """Reads a folder of documents and writes an annotated profile for it.

    Args:
        folder: Holds txt, Markdown, HTML, PDF or jsonl files, at any depth.
        model: Folder with safetensors, or a hub id.
        out: File to write; nothing is overwritten.
        report: Told which file is being read.

    Returns:
        The file, and lines for people: what was found, and what was left out and why.

    Raises:
        SourceError: If the folder is missing or holds no text that can be read.
        ProfileError: If the file is there already.
    """
    if out.exists():
        raise ProfileError(f"{out}: is there already. Give another name with --out.")
    folder, out = folder.absolute(), out.absolute()
    source = Files(kind="files", folder=folder)
    articles, excluded = read_files(source, Path(), datetime.now(UTC), report)
    name = slug(folder.name)
    local = Path(model).is_dir()
    values = {
        "name: own-corpus ": f"name: {name} ",
        "description: A folder of documents and one small model.": "description: "
        + json.dumps(f"{folder.name} and {Path(model).name}", ensure_ascii=False),
        "  handbook: ": f"  {name}: ",
        "    title: Our handbook": f"    title: {json.dumps(folder.name, ensure_ascii=False)}",
        "      folder: documents ": f"      folder: {_quoted(folder, out.parent)} ",
        "--corpus handbook": f"--corpus {name}",
        "  small: ": f"  {slug(Path(model).name, dots=False)}: ",
        "    source: HuggingFaceTB/SmolLM2-135M": "    source: "
        + (_quoted(Path(model).absolute(), out.parent) if local else json.dumps(model)),
        "corpora: [handbook]": f"corpora: [{name}]",
        "models: [small]": f"models: [{slug(Path(model).name, dots=False)}]",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for old, new in values.items():
        text = text.replace(old, new)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    load_profile(str(out))
    characters = sum(len(body) for article in articles for body in article.bodies)
    found = [f"{len(articles)} articles, {characters:,} characters"]
    reasons = Counter(exclusion.reason for exclusion in excluded)
    found += [f"left out: {n} ({reason})" for reason, n in reasons.most_common(5)]
    return out, found


def _quoted(path: Path, base: Path) -> str:
    """A path as YAML text, relative to the profile's folder where it lies below it."""
    shown = path.relative_to(base) if path.is_relative_to(base) else path
    return json.dumps(shown.as_posix(), ensure_ascii=False)
