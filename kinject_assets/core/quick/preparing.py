"""The profile of a pilot: written as `kinject init` does, or the one that is there."""

from dataclasses import dataclass
from pathlib import Path

from kinject_assets.config import Profile, lab_data, load_profile
from kinject_assets.core.errors import ModelError, ProfileError
from kinject_assets.core.llm.prices import cost
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.starting import LAB, Choices, slug, write_profile

K = 3
"""Passages in front of each question."""

RESERVED = 128
"""Tokens of the model's window that are left to a question and its option."""

LONGEST, SHORTEST = 256, 32
"""Tokens of a passage: at most, however long the window is, and what one has at least."""

BUDGET_USD = 1.0
"""What a pilot may cost where nothing else is said and the service's price is known."""

WINDOWS = ("n_positions", "max_position_embeddings", "n_ctx")
"""What models call the length of their window, in the order in which lm-eval looks."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a person asks for; `None` for what is left to us.

    Attributes:
        folder: Documents.
        model: Folder with safetensors, hub id, or `lab:NAME`.
        budget_usd: Sum that the service may not be paid beyond.
        llm_model: The service's name of the model that writes questions.
        base_url: Address of the service; `lab` is the embedded lab's.
        encoder: Folder, hub id or `lab:NAME`.
        out: Profile to write, or to go on with.
    """

    folder: Path
    model: str
    budget_usd: float | None = None
    llm_model: str | None = None
    base_url: str | None = None
    encoder: str | None = None
    out: Path | None = None

    @property
    def path(self) -> Path:
        """The profile's file."""
        name = slug(f"quick-{self.folder.absolute().name}")
        return (self.out or Path(f"{name}.yaml")).absolute()


def prepare(wanted: Wanted, report: Report = silent) -> tuple[Profile, list[str]]:
    """Writes the profile of a pilot, or reads the one that is there.

    Args:
        wanted: What is asked for.
        report: Told which document is being read.

    Returns:
        The profile, with the budget that is wanted, and lines for people on what was decided.

    Raises:
        ProfileError: If the profile that is there is of other documents or another model.
        ModelError: If the model's window is unknown or too short for a question with passages.
        SourceError: If the folder holds no text that can be read.
    """
    if wanted.path.exists():
        profile = load_profile(str(wanted.path))
        _same_study(profile, wanted)
        said = [f"goes on with {wanted.path.name}"]
        if wanted.budget_usd is not None:
            llm = profile.llm.model_copy(update={"budget_usd": wanted.budget_usd})
            profile = profile.model_copy(update={"llm": llm})
        return profile, said
    chunking, why = _passages(wanted.model)
    written, found = write_profile(
        wanted.folder, wanted.model, wanted.path, report, _choices(wanted, chunking)
    )
    return load_profile(str(written)), [*found, why, f"wrote {written.name}"]


def _choices(wanted: Wanted, chunking: tuple[str, int, int]) -> Choices:
    """What the profile has otherwise than the example."""
    llm_model = wanted.llm_model
    if wanted.base_url == LAB and llm_model is None:
        from kinject_assets.lab.writer import MODEL

        llm_model = MODEL
    budget = wanted.budget_usd
    priced = cost(llm_model, 0, 0) is not None if llm_model else not wanted.base_url
    if budget is None and priced:
        budget = BUDGET_USD
    return Choices(
        llm_model=llm_model,
        base_url=wanted.base_url,
        budget_usd=budget,
        encoder=wanted.encoder,
        chunking=chunking,
    )


def _passages(model: str) -> tuple[tuple[str, int, int], str]:
    """How documents are cut so that `K` passages and a question fit the model's window, and why."""
    window = _window(model)
    room = (window - RESERVED) // K
    if room < SHORTEST:
        raise ModelError(
            f"models: `{model}` reads {window} tokens at once; {K} passages and a question need "
            f"{RESERVED + K * SHORTEST} at least. Take a model with a longer window."
        )
    longest = min(LONGEST, room - room % 8)
    why = (
        f"passages of at most {longest} tokens: {K} of them and a question fit the {window} tokens "
        "that the model reads"
    )
    return (model, longest, min(30, longest // 2)), why


def _window(model: str) -> int:
    """Tokens that a model reads at once.

    Raises:
        ModelError: If its settings cannot be read or do not say.
    """
    from transformers import AutoConfig

    source = str(lab_data() / model.removeprefix("lab:")) if model.startswith("lab:") else model
    try:
        settings = AutoConfig.from_pretrained(
            source, trust_remote_code=False, local_files_only=Path(source).is_dir()
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"--model {model}: its config.json cannot be read ({reason}). Give a folder with "
            "config.json, tokenizer and *.safetensors, a hub id, or lab:lab-llama."
        ) from error
    for name in WINDOWS:
        if isinstance(found := getattr(settings, name, None), int):
            return found
    raise ModelError(
        f"--model {model}: its config.json does not say how many tokens it reads (one of "
        f"{', '.join(WINDOWS)}). Write a profile with `kinject init` and set `chunking` yourself."
    )


def _same_study(profile: Profile, wanted: Wanted) -> None:
    """Refuses to go on with a profile that was written for something else."""
    file = wanted.path.name
    mend = "Give another name with --out, or change the profile and leave the option out."
    folders = {
        (profile.folder / corpus.source.folder).resolve()
        for corpus in profile.corpora.values()
        if corpus.source.kind == "files"
    }
    if folders != {wanted.folder.resolve()}:
        raise ProfileError(f"{file}: is there already, and not of {wanted.folder}. {mend}")
    told = {
        "--model": (wanted.model, [model.source for model in profile.models.values()]),
        "--llm-model": (wanted.llm_model, [profile.llm.model]),
        "--base-url": (wanted.base_url, [profile.llm.base_url]),
        "--encoder": (wanted.encoder, [profile.retrieval.encoder.model]),
    }
    for option, (given, there) in told.items():
        if given is not None and _resolved(profile.folder, given, there) not in there:
            raise ProfileError(
                f"{file}: is there already, with {', '.join(map(str, there))}, not {option} "
                f"{given}. {mend}"
            )


def model_named(profile: Profile, source: str) -> str:
    """The name under which a profile has a model.

    Args:
        profile: From `prepare`.
        source: Folder, hub id or `lab:NAME`, as it was given to `prepare`.

    Raises:
        ProfileError: If it has no such model.
    """
    names = {model.source: name for name, model in reversed(profile.models.items())}
    found = names.get(_resolved(profile.folder, source, list(names)) or "")
    if found is None:
        raise ProfileError(
            f"{profile.path}: models: none has the source {source}; there are {', '.join(names)}."
        )
    return found


def _resolved(folder: Path, given: str, there: list[str | None]) -> str | None:
    """A name as the profile spells it, where both are the same folder."""
    if not Path(given).is_dir():
        return given
    same = (name for name in there if name and (folder / name).resolve() == Path(given).resolve())
    return next(same, given)
