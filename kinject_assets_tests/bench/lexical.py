"""How long BM25 takes by size of the corpus: `python -m kinject_assets_tests.bench.lexical`.

Chunks are made of passages of real articles (`$KINJECT_REALDATA`): the words of one, half of them
drawn from another, shuffled. So words are as frequent as in real text, and no two chunks are equal.
Queries are headings and first sentences of the articles' sections, which stand in no passage.
"""

import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import psutil

from kinject_assets.config import Lexical
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.retrieval.lexical import LexicalIndex
from kinject_assets_tests.bench.gates import DUMP, articles
from kinject_assets_tests.core.retrieval.test_real_retrieval import asked

DEPTH = 100
"""Chunks a query, as fusion takes them."""


def made(passages: Sequence[str], count: int) -> Iterator[str]:
    """Chunks of the words of two passages each."""
    words = [passage.split() for passage in passages]
    draw = random.Random(count)
    for number in range(count):
        mine, other = words[number % len(words)], words[draw.randrange(len(words))]
        mixed = [draw.choice(other) if draw.random() < 0.5 else word for word in mine]
        draw.shuffle(mixed)
        yield " ".join(mixed)


def measure(passages: Sequence[str], queries: Sequence[str], count: int) -> dict[str, float]:
    """Times and memory of one size."""
    texts = list(made(passages, count))
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    index = LexicalIndex(texts, Lexical())
    built = time.perf_counter()
    for query in queries:
        index.rank(query, DEPTH)
    done = time.perf_counter()
    return {
        "chunks": count,
        "build_seconds": round(built - start, 2),
        "query_ms": round(1000 * (done - built) / len(queries), 2),
        "rss_mb_gained": round((process.memory_info().rss - before) / 1e6),
    }


@click.command(help=__doc__)
@click.option("--chunks", multiple=True, type=int, default=(10_000, 100_000), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write as well.")
def main(chunks: tuple[int, ...], out: Path | None) -> None:
    """Measures each size and prints a line for it."""
    if not DUMP.is_file():
        sys.exit(f"absent: {DUMP}; set KINJECT_REALDATA to the folder that holds it")
    case = asked(articles(), held_out=True)
    passages = [chunk.text for chunk in case.chunks]
    rows = [measure(passages, case.queries, count) for count in chunks]
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    for row in rows:
        print(
            f"{row['chunks']:>9,} chunks: built in {row['build_seconds']} s, "
            f"{row['query_ms']} ms a query, {row['rss_mb_gained']} MB"
        )
    print(f"{len(case.queries)} queries, one thread; load {load:.1f} a core")
    if out:
        found = {"queries": len(case.queries), "load_a_core": round(load, 1), "rows": rows}
        write_atomically(out, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
