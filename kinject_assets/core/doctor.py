"""Whether this machine can run a profile, and what to mend.

Of other machines, the database and the object store that are set are asked whether they answer.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kinject_assets.config import Profile, home, local_or_hub
from kinject_assets.core.history import HistoryError, described
from kinject_assets.core.lake.objects import Objects
from kinject_assets.core.results.rendering import dumped

PACKAGES = (
    "dagster_webserver",
    "torch",
    "transformers",
    "peft",
    "faiss",
    "sentence_transformers",
    "lm_eval",
    "duckdb",
)

NEEDED_GIB = 2
"""Free disk below which a study of any size is in danger; `kinject plan` says what one needs."""

PATIENCE_SECONDS = 3.0
"""How long an object store that does not answer is asked again."""

SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN")
"""What a store may repeat in a refusal."""


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        ok: Whether it is well.
        text: What it is, and where it is not well what to do.
    """

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'MEND'} {self.text}"


def as_json(findings: list[Finding]) -> str:
    """Findings for programs."""
    return dumped([asdict(finding) for finding in findings])


def _packages() -> Iterator[Finding]:
    for package in PACKAGES:
        there = importlib.util.find_spec(package) is not None
        yield Finding(there, f"package {package}" + ("" if there else ": pip install -e ."))


def _disk(profile: Profile) -> Iterator[Finding]:
    root = home(profile)
    there = next(path for path in (root, *root.parents) if path.exists())
    writable = os.access(there, os.W_OK)
    yield Finding(
        writable,
        f"{root} " + ("is writable" if writable else "cannot be written; set KINJECT_HOME"),
    )
    free = shutil.disk_usage(there).free / 2**30
    enough = free > NEEDED_GIB
    yield Finding(enough, f"{free:.0f} GiB free there" + "; a study needs more" * (not enough))


def _history(profile: Profile) -> Iterator[Finding]:
    try:
        yield Finding(True, f"Dagster's history: {described(profile)}")
    except HistoryError as error:
        yield Finding(False, f"Dagster's history: {error}")


def _cluster(profile: Profile) -> Iterator[Finding]:
    if (os.environ.get("KINJECT_COMPUTE") or profile.compute) != "ray":
        return
    there = importlib.util.find_spec("dagster_ray") is not None
    yield Finding(there, "package dagster_ray" + ("" if there else ": pip install 'kinject[ray]'"))
    address = os.environ.get("RAY_ADDRESS", "")
    jobs = not address or address.startswith(("http://", "https://"))
    said = address or "none given: a cluster of this machine is started for each command"
    yield Finding(
        jobs,
        f"Ray cluster: {said}"
        + ("" if jobs else " takes no jobs: give the dashboard's, e.g. http://HEAD:8265"),
    )


def _lake(profile: Profile) -> Iterator[Finding]:
    if profile.lake is None:
        return
    address = urlsplit(profile.lake)
    if address.scheme == "file":
        yield _shared_folder(Path(unquote(address.path)))
        return
    if address.scheme == "s3":
        there = importlib.util.find_spec("s3fs") is not None
        yield Finding(there, "package s3fs" + ("" if there else ": pip install 'kinject[s3]'"))
        if not there:
            return
    if address.username or address.password:
        yield Finding(False, "lake: its URL holds a key: keys belong into the environment")
        return
    yield _object_store(profile.lake, profile.cache_gb)


def _shared_folder(folder: Path) -> Finding:
    """Whether the lake in a folder can be written, or made where it is not there yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return Finding(True, f"lake: {folder} is writable")
    return Finding(False, f"lake: {folder} cannot be written; is it mounted, with your rights?")


def _object_store(url: str, cache_gb: float) -> Finding:
    """Whether the store answers to a small listing."""
    try:
        # Nothing is there: the answer is short, and still an error without the bucket or the right.
        Objects(url, PATIENCE_SECONDS).listing("doctor")
    except Exception as error:  # of any store's library: the others are looked at all the same
        said = " ".join(str(error).split()) or type(error).__name__
        for secret in filter(None, map(os.environ.get, SECRETS)):
            said = said.replace(secret, "***")
        return Finding(False, f"lake: {said.removeprefix('lake: ')}")
    return Finding(True, f"lake: {url} answers, up to {cache_gb:g} GB of it kept here")


def _models(profile: Profile) -> Iterator[Finding]:
    named = {f"model {name}": model.source for name, model in profile.models.items()}
    named["encoder"] = profile.retrieval.encoder.model
    for name, source in named.items():
        found = local_or_hub(profile, source)
        folder = Path(found).is_dir()
        like_path = source.startswith(("lab:", ".", "/", "~"))
        if folder:
            where = "(a folder)"
        elif like_path:
            lab = source.startswith("lab:")
            where = "is no folder: " + ("kinject lab pretrain" if lab else "correct it")
        else:
            where = "(from the hub when it is used)"
        yield Finding(folder or not like_path, f"{name}: {found} {where}")


def _sources(profile: Profile) -> Iterator[Finding]:
    for name, corpus in profile.corpora.items():
        if corpus.source.kind == "files":
            folder = profile.folder / corpus.source.folder
            there = folder.is_dir()
            yield Finding(
                there,
                f"corpus {name}: {folder} "
                + ("(a folder)" if there else f"is no folder: set corpora.{name}.source.folder"),
            )


def _writer(profile: Profile) -> Iterator[Finding]:
    writes = any(corpus.exam.kind == "generated" for corpus in profile.corpora.values())
    # Whatever is trained, its learning rate is chosen on validation paraphrases.
    trains = any({"ft", "ft_rag"} & set(cells.methods) and cells.recipes for cells in profile.grid)
    if not writes and not trains:
        return
    what = "questions and paraphrases" if writes else "paraphrases"
    if profile.llm.base_url == "lab":
        yield Finding(True, f"{what}: the lab's writer, no key needed")
        return
    base = profile.llm.base_url or os.environ.get("OPENAI_BASE_URL")
    key = bool(os.environ.get("OPENAI_API_KEY"))
    said = "set" if key else "not set: export OPENAI_API_KEY=..."
    yield Finding(key or bool(base), f"{what}: {base or 'OpenAI'}, key {said}")


def examine(profile: Profile) -> list[Finding]:
    """Looks at packages, disk, history, lake, models, documents and the service of a profile."""
    return [
        Finding(True, f"profile {profile.path}"),
        *_packages(),
        *_disk(profile),
        *_history(profile),
        *_cluster(profile),
        *_lake(profile),
        *_models(profile),
        *_sources(profile),
        *_writer(profile),
    ]
