"""What a profile may say, from the model that checks it: docs/profile.md, and a JSON schema."""

import json
import re
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from kinject_assets.config import Profile

INTRODUCTION = """\
# The profile, field by field

One YAML file says all that decides a study, and what it may cost. This page is written by `kinject
profile --reference` from the model that checks profiles; a test holds the two together.

```
kinject init DOCUMENTS --model MODEL           # writes an annotated profile for a folder
kinject profile --profile my-study.yaml        # a profile with all of its defaults
kinject profile --schema > schema.json         # for editors that complete YAML
```

Fields that are not named have their defaults. Unknown or wrong fields are refused with the file,
the field, what is allowed and the nearest name. Paths are relative to the profile's file. Where a
model or encoder is named, it is a folder, an id of the Hugging Face hub, or `lab:NAME` for one of
the embedded lab's. Keys of corpora are lower-case letters, digits and `._-`; those of models have
no dots.

Fields that say how fast something is done (`llm.concurrency`, `training.micro_batch`,
`scoring.batch_size` and the like) decide no result. When another field is changed, exactly what
depends on it is made again.

A **recipe's name** says what is trained: `METHOD.pNN` trains on the text and NN further texts of
each chunk, `METHOD.rNN` is its control, the text alone repeated to as many steps and tokens. METHOD
is `full`, `lora` or `qlora`; a variant and a seed may follow: `lora.p04.qa.s1`.
"""

NEEDED = "**needed**"


@dataclass(frozen=True)
class _Section:
    """A part of the profile.

    Attributes:
        path: Where it stands.
        model: What checks it.
        field: Field of the part above that holds it.
        kind: What chooses it among several; empty if there is no choice.
    """

    path: str
    model: type[BaseModel]
    field: str = ""
    kind: str = ""

    @property
    def title(self) -> str:
        if not self.path:
            return "The profile itself"
        return f"`{self.path}`" + (f", kind `{self.kind}`" if self.kind else "")

    @property
    def anchor(self) -> str:
        """What GitHub makes of the title."""
        kept = re.sub(r"[^\w\- ]", "", self.title.lower())
        return kept.replace(" ", "-")


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Models that a value of this type may be or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _kind(model: type[BaseModel]) -> str:
    """Value of `kind` that chooses a model among several; empty if there is no choice."""
    field = model.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field else ""


def _below(section: _Section) -> Iterator[_Section]:
    """Parts of a part, in the order of its fields."""
    for name, field in section.model.model_fields.items():
        inner = _models(field.annotation)
        origin = get_origin(field.annotation)
        path = f"{section.path}.{name}" if section.path else name
        path += {dict: ".NAME", tuple: "[]"}.get(origin, "") if inner else ""  # pyright: ignore[reportArgumentType]
        for model in inner:
            yield _Section(path, model, name, _kind(model))


def _sections(section: _Section) -> Iterator[_Section]:
    yield section
    for inner in _below(section):
        yield from _sections(inner)


def _bounds(metadata: list[Any]) -> str:
    """Limits of a number, or of the length of a list."""
    parts: list[str] = []
    for item in metadata:
        match item:
            case Ge(ge=limit):
                parts.append(f"at least {limit:,}")
            case Gt(gt=limit):
                parts.append(f"above {limit:,}")
            case Le(le=limit):
                parts.append(f"at most {limit:,}")
            case Lt(lt=limit):
                parts.append(f"below {limit:,}")
            case MinLen():
                parts.append("one at least")
    return "".join(f", {part}" for part in parts)


def _pattern(metadata: Iterable[Any]) -> str:
    """What a text with a pattern is: a month or a name; empty without one."""
    patterns = [str(item.pattern) for item in metadata if getattr(item, "pattern", None)]
    if not patterns:
        return ""
    return "month `YYYY-MM`" if r"\d{4}" in patterns[0] else "name"


def _named(annotation: Any) -> str:
    """A type in words, without its limits."""
    plain: dict[Any, str] = {
        int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path",
        type(None): "null",
    }  # fmt: skip
    if annotation in plain:
        return plain[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _pattern(arguments[1:]) or _named(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_named(inner) for inner in arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_named(arguments[0])}"
        return f"list of {len(arguments)}: {', '.join(map(_named, arguments))}"
    if origin is dict:
        return f"name -> {_named(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "part"
    return {"date": "date", "datetime": "time with its zone"}[annotation.__name__]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return NEEDED
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined, "a field that is not needed has a default"
    if isinstance(value, BaseModel):
        return f"kind `{kind}`" if (kind := _kind(type(value))) else "its defaults"
    text = json.dumps(to_jsonable_python(value), ensure_ascii=False)
    return "its defaults" if isinstance(value, dict) and _models(field.annotation) else f"`{text}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(section: _Section) -> str:
    inner: defaultdict[str, list[_Section]] = defaultdict(list)
    for part in _below(section):
        inner[part.field].append(part)
    rows = ["| field | value | default | what it says |", "|---|---|---|---|"]
    for name, field in section.model.model_fields.items():
        if field.exclude:
            continue
        links = ", ".join(f"[{part.kind or part.path}](#{part.anchor})" for part in inner[name])
        what = "; ".join(filter(None, (field.description, links and f"see {links}")))
        kind = _pattern(field.metadata) or _named(field.annotation)
        cells = (f"`{name}`", kind + _bounds(field.metadata), _default(field), what)
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def reference_page() -> str:
    """Every field with its type, limits, default and meaning, as Markdown."""
    parts = [INTRODUCTION]
    for section in _sections(_Section("", Profile)):
        said = cleandoc(section.model.__doc__ or "").split("\n\n")[0]
        parts.append(f"## {section.title}\n\n{' '.join(said.split())}\n\n{_table(section)}\n")
    return "\n".join(parts)


def schema_json() -> str:
    """The JSON schema of a profile."""
    schema = Profile.model_json_schema()
    # Where it was read from is no field of the file.
    schema["properties"].pop("path")
    return json.dumps(schema, indent=2, ensure_ascii=False)


def whole_profile(profile: Profile) -> str:
    """A profile as YAML with all of its defaults."""
    text = yaml.safe_dump(
        profile.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )
    return f"# {profile.path}, with its defaults\n{text}"
