"""`kinject quick` on a folder of real articles, with the lab's model and the lab's server."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from kinject_assets_tests.bench.gates import DUMP, articles
from kinject_assets_tests.e2e.conftest import command, environment

ARTICLES = 20
MOST_SECONDS = 600


def write_articles(folder: Path) -> None:
    """Real articles of Wikipedia as Markdown files, with their sections."""
    folder.mkdir()
    for number, article in enumerate(articles()[:ARTICLES]):
        parts = [f"# {article.title}"]
        for heading, body in zip(article.headings, article.bodies, strict=True):
            parts += [f"## {heading}", body] if heading else [body]
        (folder / f"{number:02d}.md").write_text("\n\n".join(parts))


@pytest.mark.slow
@pytest.mark.skipif(not DUMP.is_file(), reason=f"no real articles: {DUMP} is absent")
def test_a_pilot_on_real_articles_ends_with_its_sentence(tmp_path: Path) -> None:
    write_articles(tmp_path / "articles")
    lab = ("--model", "lab:lab-llama", "--base-url", "lab", "--encoder", "lab:encoder")
    began = time.monotonic()
    done = subprocess.run(
        command("quick", "articles", *lab),
        cwd=tmp_path,
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=2 * MOST_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < MOST_SECONDS
    kept = json.loads((tmp_path / "home" / "quick-articles" / "quick.json").read_text())
    first = kept["sentences"][0]
    number = r"[+−]?\d\.\d\d"
    interval = rf"{number} \[{number}, {number}\]"
    went = rf"\({number} → {number} on \d+ questions\)"
    assert re.search(rf"RAG .*{interval} {went}\.", first), first
    assert done.stdout.startswith(first.split(" (")[0])
    assert kept["questions"] >= 30
    assert kept["passages"] > 1000
    # Gaps to fill in text that the lab's model cannot read: no better than chance.
    assert kept["bottleneck"] == "model"
    assert "bottleneck" in done.stdout
    assert "Fine-tuning was not tried" in done.stdout
    assert "no language model" in " ".join(done.stdout.split())
    assert "kinject run --profile quick-articles.yaml" in done.stdout
    print(done.stdout)
