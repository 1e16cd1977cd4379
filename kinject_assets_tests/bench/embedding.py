"""`encode`, which puts texts of like length into a batch, against three other ways, side by side.

The ways take turns on the passages of the real articles in KINJECT_REALDATA, with an encoder of
BERT's shape and random weights, on the CPU:

- kinject: batches of texts of like length, counted in tokens
- library: all texts in one call of sentence-transformers, which goes by characters
- unsorted: batches in the corpus's order
- one by one: a call for each text

Work is what the forward passes read: tokens and the padding beside them.

    python -m kinject_assets_tests.bench.embedding
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np

from kinject_assets import config
from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.retrieval.encoder import encode, load_encoder, text_lengths
from kinject_assets_tests.bench.gates import DUMP, articles
from kinject_assets_tests.tiny import random_bert

HIDDEN, LAYERS, WINDOW = 256, 4, 512
BATCH = 64
MOST_APART = 1e-5


def read(lengths: np.ndarray, order: Sequence[int] | np.ndarray, batch: int = BATCH) -> int:
    """Tokens and padding that forward passes read when texts are taken in an order."""
    batches = (lengths[order[at : at + batch]] for at in range(0, len(order), batch))
    return int(sum(found.max() * len(found) for found in batches))


@click.command(help=__doc__)
@click.option("--passages", default=400, show_default=True, help="At most.")
@click.option("--repeats", default=3, show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("data/out/bench/embedding.json"),
    show_default=True,
)
def main(passages: int, repeats: int, out: Path) -> None:
    import torch

    if not DUMP.is_file():
        raise click.ClickException(f"{DUMP} is absent; set KINJECT_REALDATA to the folder with it")
    chunks = chunk_articles(articles(), config.Chunking(), token_counter("words"))
    step = max(1, len(chunks) // passages)
    texts = [chunk.text for chunk in chunks][::step][:passages]
    with tempfile.TemporaryDirectory(prefix="kinject-bench-") as name:
        folder = random_bert(Path(name), texts, hidden=HIDDEN, layers=LAYERS, window=WINDOW)
        encoder = load_encoder(config.Encoder(model=str(folder)), "cpu")

        def theirs(some: list[str]) -> np.ndarray:
            return encoder.encode(
                some, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
            )

        ways: dict[str, Callable[[], np.ndarray]] = {
            "kinject": lambda: encode(encoder, texts, BATCH),
            "library": lambda: theirs(texts),
            "unsorted": lambda: np.concatenate(
                [theirs(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
            ),
            "one by one": lambda: np.concatenate([theirs([text]) for text in texts]),
        }
        theirs(texts[:BATCH])
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        made: dict[str, np.ndarray] = {}
        for _ in range(repeats):
            for way, run in ways.items():
                began = time.monotonic()
                made[way] = run()
                seconds[way].append(time.monotonic() - began)
        lengths, _ = text_lengths(encoder, texts)
    by_characters = np.argsort([-len(text) for text in texts], kind="stable")
    work = {
        "kinject": read(lengths, np.argsort(-lengths, kind="stable")),
        "library": read(lengths, by_characters),
        "unsorted": read(lengths, np.arange(len(texts))),
        "one by one": read(lengths, np.arange(len(texts)), 1),
    }
    apart = {way: float(np.abs(found - made["kinject"]).max()) for way, found in made.items()}
    if (most := max(apart.values())) > MOST_APART:
        raise click.ClickException(f"vectors differ by {most:.1e}")
    # The fastest: what else the machine does can only slow a way down.
    best = {way: min(found) for way, found in seconds.items()}
    record = {
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
        },
        "encoder": {"hidden": HIDDEN, "layers": LAYERS, "batch": BATCH},
        "passages": len(texts),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "ways": {
            way: {
                "passages_per_second": len(texts) / best[way],
                "kinject_by_this": best[way] / best["kinject"],
                "padding_share": 1 - int(lengths.sum()) / work[way],
                "apart": apart[way],
                "seconds": seconds[way],
            }
            for way in ways
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    click.echo("| way | passages/s | kinject is faster by | padding | vectors differ by |")
    click.echo("|---" * 5 + "|")
    for way, found in record["ways"].items():
        click.echo(
            f"| {way} | {found['passages_per_second']:.1f} | {found['kinject_by_this']:.2f} "
            f"| {found['padding_share']:.1%} | {found['apart']:.0e} |"
        )
    click.echo(out)


if __name__ == "__main__":
    main()
