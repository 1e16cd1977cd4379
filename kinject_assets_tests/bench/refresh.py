"""What a refresh costs against a full build: 2,000 synthetic articles, 1 % of them edited.

The lab's world behind its real server; chunks, questions, vectors and index as a study makes them.
Run with `make bench`; the figures go to `data/out/bench/refresh.json`.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import httpx
import yaml

from kinject_assets.config import PROFILES, Lab
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.store import Store
from kinject_assets.lab.server import build_app, serving
from kinject_assets.lab.world import ARTICLE, PageRevision, World, WorldPage
from kinject_assets.lab.world import CATEGORY as CATEGORY_SPACE

ARTICLES = 2_000
EDITED_SHARE = 0.01
SECTIONS, SENTENCES = 1, 6
CORPUS = "reports"
CATEGORY = "Reports"

_SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()
_THINGS = "bridge canal harbour library market mill museum observatory railway school".split()


class Reports(World):
    """A wiki of reports in invented plain prose, which can be edited."""

    def __init__(self, count: int, seed: int) -> None:
        self._now = datetime(2031, 1, 1, tzinfo=UTC)
        self._draw = random.Random(seed)
        self._pages = {
            page.title: page
            for page in [
                self._page_of(f"Category:{CATEGORY}", "Reports.", CATEGORY_SPACE),
                *(self._report(f"Report {number:04d}") for number in range(count)),
            ]
        }

    def _name(self) -> str:
        """One of 160,000 names: as in real text, few are met twice."""
        return "".join(self._draw.choice(_SYLLABLES) for _ in range(4)).capitalize()

    def _sentence(self) -> str:
        draw = self._draw
        return (
            f"In {draw.randrange(1800, 2031)} the {draw.choice(_THINGS)} of {self._name()} "
            f"was rebuilt by {self._name()} {self._name()} for "
            f"{draw.randrange(10_000, 10_000_000)} crowns."
        )

    def _report(self, title: str) -> WorldPage:
        parts = [
            f"== Part {number} ==\n" + " ".join(self._sentence() for _ in range(SENTENCES))
            for number in range(SECTIONS)
        ]
        return self._page_of(title, "\n".join([*parts, f"[[Category:{CATEGORY}]]"]))

    def _page_of(self, title: str, text: str, namespace: int = ARTICLE) -> WorldPage:
        return WorldPage(
            page_id=int(content_hash("page", title)[:12], 16),
            namespace=namespace,
            title=title,
            categories=(CATEGORY,) if namespace == ARTICLE else (),
            revisions=(self._revised(title, text),),
        )

    def _revised(self, title: str, text: str) -> PageRevision:
        number = int(content_hash(title, text, self._now)[:12], 16)
        return PageRevision(revision_id=number, timestamp=self._now, wikitext=text)

    def edit_sentences(self, count: int) -> list[str]:
        """Replaces one sentence in each of so many reports; their titles."""
        titles = [page.title for page in self.pages if page.namespace == ARTICLE]
        chosen = sorted(self._draw.sample(titles, count))
        self._now += timedelta(minutes=1)
        for title in chosen:
            page = self._pages[title]
            old = self._draw.choice(page.current.wikitext.split("crowns. ")[1:-1]) + "crowns."
            text = page.current.wikitext.replace(old, self._sentence(), 1)
            revisions = (*page.revisions, self._revised(title, text))
            self._pages[title] = replace(page, revisions=revisions)
        return chosen


def profile(folder: Path) -> Path:
    """The lab's models on one corpus of reports."""
    content = yaml.safe_load((PROFILES / "lab.yaml").read_text())
    content |= {
        "name": "refresh",
        "corpora": {
            CORPUS: {
                "source": {"kind": "wiki", "wiki": "lab", "categories": [CATEGORY], "depth": 0}
            }
        },
        "recipes": {},
        "grid": [{"corpora": [CORPUS], "models": ["lab-llama"], "methods": ["rag"]}],
        "scoring": {"choice_format": "text", "batch_size": 32, "shots": [0], "k": [1]},
        # Probing 4,000 questions would take most of the time and say nothing about refreshing.
        "exams": {"shots_share": 0.1, "triage": False},
    }
    content.pop("damage")
    path = folder / "refresh.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def refresh(path: Path, home: Path, address: str) -> tuple[float, str]:
    """Runs `kinject refresh`; its seconds and what it said."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KINJECT_", "DAGSTER_"))}
    environment = {**kept, "KINJECT_HOME": str(home), "KINJECT_LAB_URL": address}
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kinject_assets.cli", "refresh"),
            *("--profile", str(path), "--corpus", CORPUS),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(done.stderr)
    return time.monotonic() - began, done.stderr


def figures(store: Store, since: int, address: str) -> dict[str, Any]:
    """What the last refresh did, from the manifests, the ledger and the server's own count."""
    counts: dict[str, dict[str, Any]] = {}
    for cell, manifest in store.published():
        counts[cell.asset] = manifest.counts
    rows = [
        json.loads(line)
        for path in sorted((store.lake / "llm_ledger").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ][since:]
    received = [row for row in rows if row["row"] == "received"]
    articles, embeddings = counts["articles"], counts["embeddings"]
    return {
        "articles": articles["articles"],
        "wiki_requests": articles["requests"],
        "bodies": articles["bodies_fetched"],
        "chunks": embeddings["chunks"],
        "embedded": embeddings["chunks"] - embeddings["reused"],
        "llm_requests": len(received),
        "llm_tokens": sum(row["input_tokens"] + row["output_tokens"] for row in received),
        "ledger_rows": len(rows),
        "answers": counts["answers_rag"]["questions"],
        "answers_taken_over": counts["answers_rag"]["answers_taken_over"],
        "server_requests": httpx.get(f"{address}/lab/stats").json()["requests"],
    }


def stages(said: str) -> dict[str, float]:
    """Seconds by stage as the command prints them."""
    lines = said.partition("seconds by stage:\n")[2].splitlines()
    found: dict[str, float] = {}
    for line in lines:
        name, _, value = line.strip().rpartition(" ")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            break
    return found


@click.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("data/out/bench/refresh.json"),
    show_default=True,
)
@click.option("--articles", default=ARTICLES, show_default=True, help="Size of the corpus.")
def main(out: Path, articles: int) -> None:
    """Measures a full build, a look that finds nothing, and one after 1 % was edited."""
    folder = Path(tempfile.mkdtemp(prefix="kinject-bench-"))
    try:
        result = measure(folder, articles)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps(result["shares"], indent=2))
    click.echo(f"{out}")


def measure(folder: Path, articles: int) -> dict[str, Any]:
    """The three runs and their ratios."""
    path = profile(folder)
    world = Reports(articles, seed=11)
    home = folder / "home"
    store = Store(home / "refresh")
    runs: dict[str, dict[str, Any]] = {}
    with serving(build_app(Lab(), world=world)) as address:
        since = 0

        def run(name: str) -> None:
            nonlocal since
            httpx.delete(f"{address}/lab/stats")
            seconds, said = refresh(path, home, address)
            found = figures(store, since, address)
            since += found.pop("ledger_rows")
            runs[name] = {**found, "seconds": round(seconds, 1), "stages": stages(said)}
            click.echo(f"{name}: {runs[name]}", err=True)

        run("full")
        run("nothing_changed")
        edited = world.edit_sentences(round(EDITED_SHARE * articles))
        run("edited")
    full, nothing, after = runs["full"], runs["nothing_changed"], runs["edited"]
    return {
        "edited": len(edited),
        "runs": runs,
        "shares": {
            "bodies": after["bodies"] / full["bodies"],
            "embedded": after["embedded"] / full["embedded"],
            "llm_tokens": after["llm_tokens"] / full["llm_tokens"],
            "requests_of_a_listing": nothing["wiki_requests"],
            "requests_after_edits": after["wiki_requests"],
            "marginal_seconds": round(after["seconds"] - nothing["seconds"], 1),
            "fixed_seconds": nothing["seconds"],
            "full_seconds": full["seconds"],
        },
    }


if __name__ == "__main__":
    main()
