"""Flat, HNSW and IVF-PQ side by side: recall against speed, and what each takes to build and keep.

Vectors have the structure of real text. The passages and sentences of the articles in
KINJECT_REALDATA are encoded by latent semantic analysis of the passages (`tiny.svd_encoder`, 384
numbers). All but one in five sentences are put into clusters; of each cluster, mean, main
directions and the variance besides are kept, and vectors are drawn from that: mean + main
directions + noise, of length 1. The passages themselves come first. One half of the queries are the
sentences held back, the other are vectors of the corpus with noise. Recall is the share of the ten
nearest, by all inner products in numpy, that a search finds.

Each index is built in a process of its own and searched in another one, by the code that the assets
run. Batched: all queries at once, all threads. Single: one after the other, one thread.

    python -m kinject_assets_tests.bench.index --vectors 10000 --vectors 100000
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from kinject_assets import config
from kinject_assets.core.corpus.chunking import chunk_articles, sentences, token_counter
from kinject_assets.core.report.plots import COLOURS, MARKERS
from kinject_assets.core.retrieval.encoder import (
    EncoderIdentity,
    VectorFile,
    encode,
    load_embeddings,
    load_encoder,
)
from kinject_assets.core.retrieval.index import (
    INDEX,
    ChunkIndex,
    build_index,
    load_index,
    save_index,
)
from kinject_assets.core.retrieval.rule import RECALL, choose_index
from kinject_assets_tests.bench.gates import DUMP, articles
from kinject_assets_tests.tiny import svd_encoder

DIMENSION = 384
KINDS = ("flat", "hnsw", "ivfpq")
SEED = 7
CLUSTERS, DIRECTIONS = 64, 24
QUERIES, SINGLE_QUERIES = 1000, 100
NOISE = 0.3
"""Length of what is added to a vector of the corpus to make a query of it."""
DEPTH = 10
TARGET = RECALL
MEMORY_GB = 8.0
BLOCK = 16_384

SWEEPS: dict[str, list[dict[str, float]]] = {
    "flat": [{}],
    "hnsw": [{"ef_search": ef} for ef in (16, 32, 64, 128, 256, 512)],
    # Shares of the lists.
    "ivfpq": [
        *({"probed": share} for share in (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)),
        *({"refine": refine} for refine in (1, 5, 10, 40)),
    ],
}


def real_vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Encodings of the real articles' passages, and of their sentences."""
    passages = [
        chunk.text
        for chunk in chunk_articles(articles(), config.Chunking(), token_counter("words"))
    ]
    lines = [s for text in passages for line in text.splitlines() for s in sentences(line)]
    spoken = [line for line in dict.fromkeys(lines) if len(line.split()) >= 5]
    settings = config.Encoder(model=str(svd_encoder(folder, passages, DIMENSION)))
    encoder = load_encoder(settings, "cpu")
    first, second = (encode(encoder, texts, settings.batch_size) for texts in (passages, spoken))
    return first, second[np.linalg.norm(second, axis=1) > 0.5]


class Generator:
    """Draws vectors that lie as the given ones do."""

    def __init__(self, vectors: np.ndarray) -> None:
        import faiss

        centres = faiss.Kmeans(DIMENSION, CLUSTERS, seed=SEED)
        centres.train(vectors)
        clusters = centres.assign(vectors)[1]
        members = [vectors[clusters == number] for number in range(CLUSTERS)]
        members = [found for found in members if len(found) > 1]
        self.shares = np.array([len(found) for found in members]) / sum(map(len, members))
        self.means = np.stack([found.mean(axis=0) for found in members])
        self.directions = np.zeros((len(members), DIRECTIONS, DIMENSION), dtype=np.float32)
        self.noise = np.zeros(len(members), dtype=np.float32)
        for number, found in enumerate(members):
            _, values, directions = np.linalg.svd(found - self.means[number], full_matrices=False)
            variances = values**2 / (len(found) - 1)
            kept = min(DIRECTIONS, len(values))
            self.directions[number, :kept] = directions[:kept] * np.sqrt(variances[:kept, None])
            self.noise[number] = np.sqrt(variances[kept:].sum() / DIMENSION)
        everything = vectors - vectors.mean(axis=0)
        # Of the distance of real vectors from their mean, what the generator knows by direction.
        known = sum(
            share * (((mean - vectors.mean(axis=0)) ** 2).sum() + (directions**2).sum())
            for share, mean, directions in zip(
                self.shares, self.means, self.directions, strict=True
            )
        )
        self.explained = float(known / (everything**2).sum(axis=1).mean())

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """float32 of shape (count, DIMENSION), each of length 1."""
        chosen = rng.choice(len(self.shares), size=count, p=self.shares)
        made = self.means[chosen].astype(np.float32)
        along = rng.standard_normal((count, DIRECTIONS), dtype=np.float32)
        for number in range(len(self.shares)):
            rows = chosen == number
            made[rows] += along[rows] @ self.directions[number]
        noise = rng.standard_normal((count, DIMENSION), dtype=np.float32)
        made += noise * self.noise[chosen, None]
        return unit(made)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_corpus(folder: Path, count: int, first: np.ndarray, generator: Generator) -> None:
    """Vectors as the asset `embeddings` keeps them: real ones, then drawn ones."""
    identity = EncoderIdentity(model="bench", revision=None, weights="w", dimension=DIMENSION)
    file = VectorFile(folder, [f"c{row}" for row in range(count)], identity)
    rng = np.random.default_rng(SEED)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        drawn = generator.draw(len(rows), rng)
        real = rows[rows < len(first)]
        drawn[: len(real)] = first[real]
        file.write(rows, drawn)
    file.finish(folder)


def nearest(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Rows with the largest inner products, by all of them."""
    best = np.full((len(queries), DEPTH), -np.inf, dtype=np.float32)
    rows = np.zeros((len(queries), DEPTH), dtype=np.int64)
    for start in range(0, len(vectors), BLOCK):
        products = np.concatenate([best, queries @ vectors[start : start + BLOCK].T], axis=1)
        there = np.concatenate(
            [rows, np.tile(np.arange(start, start + products.shape[1] - DEPTH), (len(rows), 1))],
            axis=1,
        )
        order = np.argpartition(-products, DEPTH - 1, axis=1)[:, :DEPTH]
        best, rows = np.take_along_axis(products, order, 1), np.take_along_axis(there, order, 1)
    return rows


def memory() -> dict[str, float]:
    """Memory of this process in MB: its own, and pages of files that it maps."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return {
        "own_mb": int(found["RssAnon"]) / 1000,
        "mapped_mb": int(found["RssFile"]) / 1000,
        "peak_mb": int(found["VmHWM"]) / 1000,
    }


def settings_of(kind: str) -> config.Retrieval:
    return config.Retrieval.model_validate({"index": kind, "index_memory_gb": MEMORY_GB})


def build(folder: Path, kind: str) -> dict[str, Any]:
    """Builds one index, in this process."""
    before = memory()
    began = time.monotonic()
    index = build_index(load_embeddings(folder), settings_of(kind))
    seconds = time.monotonic() - began
    save_index(folder / kind, index)
    return {
        "choice": asdict(index.choice),
        "build_seconds": seconds,
        "own_mb": memory()["own_mb"] - before["own_mb"],
        "disk_mb": (folder / kind / INDEX).stat().st_size / 1e6,
    }


def with_parameters(index: ChunkIndex, point: dict[str, float]) -> ChunkIndex:
    parameters = dict(index.choice.parameters)
    if "probed" in point:
        parameters["nprobe"] = max(1, round(parameters["nlist"] * point["probed"]))
    parameters |= {name: int(value) for name, value in point.items() if name != "probed"}
    return replace(index, choice=replace(index.choice, parameters=parameters))


def search(folder: Path, kind: str) -> dict[str, Any]:
    """Searches one index with every parameter, in this process."""
    import faiss

    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    before, began = memory(), time.monotonic()
    index = load_index(folder / kind)
    loaded = {"load_seconds": time.monotonic() - began}
    after = memory()
    loaded |= {f"loaded_{name}": after[name] - before[name] for name in ("own_mb", "mapped_mb")}
    threads = faiss.omp_get_max_threads()
    points: list[dict[str, Any]] = []
    for point in ({}, *SWEEPS[kind]) if kind != "flat" else SWEEPS[kind]:
        tried = with_parameters(index, point)
        faiss.omp_set_num_threads(threads)
        tried.search(queries[:SINGLE_QUERIES], DEPTH)
        began = time.monotonic()
        _, rows = tried.search(queries, DEPTH)
        batched = len(queries) / (time.monotonic() - began)
        faiss.omp_set_num_threads(1)
        began = time.monotonic()
        for query in queries[:: len(queries) // SINGLE_QUERIES][:SINGLE_QUERIES]:
            tried.search(query[None], DEPTH)
        single = SINGLE_QUERIES / (time.monotonic() - began)
        found = [len(set(a) & set(b)) / DEPTH for a, b in zip(rows, truth, strict=True)]
        half = len(found) // 2
        points.append(
            {
                "parameters": tried.choice.parameters,
                "rule": not point,
                "recall_at_10": float(np.mean(found)),
                "recall_of_real_queries": float(np.mean(found[:half])),
                "recall_of_noisy_copies": float(np.mean(found[half:])),
                "batched_per_second": batched,
                "single_per_second": single,
            }
        )
    after = memory()
    searched = {f"searched_{name}": after[name] - before[name] for name in ("own_mb", "mapped_mb")}
    return {**loaded, **searched, "threads": threads, "points": points}


def in_child(step: str, folder: Path, kind: str) -> dict[str, Any]:
    words = [sys.executable, "-m", __spec__.name if __spec__ else __name__]
    done = subprocess.run(
        [*words, "--child", step, "--folder", str(folder), "--kind", kind],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        # Threads that wait give their core away: others may be using the machine.
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_size(
    folder: Path, count: int, first: np.ndarray, held: np.ndarray, generator: Generator
) -> dict[str, Any]:
    """All kinds at one number of vectors."""
    write_corpus(folder, count, first, generator)
    vectors = load_embeddings(folder).vectors
    rng = np.random.default_rng(SEED + 1)
    half = QUERIES // 2
    copies = vectors[np.sort(rng.choice(count, half, replace=False))]
    noise = unit(rng.standard_normal(copies.shape))
    queries = np.concatenate([held[:half], unit(copies + NOISE * noise)])
    np.save(folder / "queries.npy", queries)
    np.save(folder / "truth.npy", nearest(vectors, queries))
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        kinds[kind] = in_child("build", folder, kind) | in_child("search", folder, kind)
        point = kinds[kind]["points"][0]
        click.echo(
            f"{count:,} {kind}: built in {kinds[kind]['build_seconds']:.1f} s, recall@10 "
            f"{point['recall_at_10']:.3f}, {point['batched_per_second']:,.0f}/s",
            err=True,
        )
    return {
        "vectors": count,
        "rule": asdict(choose_index(count, DIMENSION, MEMORY_GB)),
        "kinds": kinds,
    }


def enough(measured: dict[str, Any], speed: str) -> float | None:
    """Queries a second of the fastest setting that finds enough."""
    good = [p[speed] for p in measured["points"] if p["recall_at_10"] >= TARGET]
    return max(good, default=None)


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line an index, at the rule's parameters."""
    lines = [
        "| vectors | index | parameters | recall@10 | batched, queries/s | single, queries/s "
        "| build, s | own memory built, MB | own memory loaded, MB | disk, MB | chosen |",
        "|---" * 11 + "|",
    ]
    for result in results:
        for kind, measured in result["kinds"].items():
            point = measured["points"][0]
            named = ", ".join(f"{k} {v}" for k, v in point["parameters"].items())
            chosen = "yes" if result["rule"]["kind"] == kind else ""
            lines.append(
                f"| {result['vectors']:,} | {kind} | {named} | {point['recall_at_10']:.3f} "
                f"| {point['batched_per_second']:,.0f} | {point['single_per_second']:,.0f} "
                f"| {measured['build_seconds']:.1f} | {measured['own_mb']:,.0f} "
                f"| {measured['searched_own_mb']:,.0f} | {measured['disk_mb']:,.1f} | {chosen} |"
            )
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Recall against speed at the largest number of vectors, and growth with the number."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).flatten()
    last, sizes = results[-1], [result["vectors"] for result in results]
    for number, kind in enumerate(KINDS):
        look = {"color": COLOURS[number], "marker": MARKERS[number], "label": kind}
        points = [p for p in last["kinds"][kind]["points"] if not p["rule"] or kind == "flat"]
        points = [p for p in points if kind != "ivfpq" or p["parameters"]["refine"] == 20]
        points.sort(key=lambda p: p["recall_at_10"])
        xs = [p["recall_at_10"] for p in points]
        axes[0].plot(xs, [p["batched_per_second"] for p in points], **look)
        axes[0].plot(
            xs, [p["single_per_second"] for p in points], **{**look, "label": None}, linestyle="--"
        )
        runs = [result["kinds"][kind] for result in results]
        axes[1].plot(sizes, [run["build_seconds"] for run in runs], **look)
        axes[2].plot(sizes, [run["disk_mb"] for run in runs], **look)
        axes[3].plot(sizes, [enough(run, "batched_per_second") for run in runs], **look)
    axes[0].set(
        xlabel="recall@10",
        ylabel="queries per second",
        yscale="log",
        title=f"{last['vectors']:,} vectors; solid: batched, dashed: single",
    )
    axes[0].axvline(TARGET, color="#7f7f7f", linewidth=0.8)
    for axis, label in zip(
        axes[1:],
        ("seconds to build", "MB of the index", f"queries/s (batched), recall >= {TARGET}"),
        strict=True,
    ):
        axis.set(xlabel="vectors", ylabel=label, xscale="log", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})


@click.command(help=__doc__)
@click.option("--vectors", "sizes", multiple=True, type=int, default=(10_000, 100_000))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("data/out/bench/index.json"),
    show_default=True,
)
@click.option(
    "--plot",
    "image",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("data/out/bench/index-growth.png"),
    show_default=True,
)
@click.option("--child", hidden=True, type=click.Choice(["build", "search"]))
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
@click.option("--kind", hidden=True, type=click.Choice(KINDS))
def main(
    sizes: Sequence[int],
    out: Path,
    image: Path,
    child: str | None,
    folder: Path | None,
    kind: str | None,
) -> None:
    if child and folder and kind:
        click.echo(json.dumps((build if child == "build" else search)(folder, kind)))
        return
    if not DUMP.is_file():
        raise click.ClickException(f"{DUMP} is absent; set KINJECT_REALDATA to the folder with it")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kinject-bench-") as name:
        first, spoken = real_vectors(Path(name) / "encoder")
        order = np.random.default_rng(SEED).permutation(len(spoken))
        held, fitted = np.split(spoken[order], [len(spoken) // 5])
        generator = Generator(fitted)
        for count in sorted(sizes):
            results.append(run_size(Path(name) / str(count), count, first, held, generator))
    record = {
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
        },
        "dimension": DIMENSION,
        "real": {"passages": len(first), "sentences": len(fitted), "held_out": len(held)},
        "generator": {
            "clusters": len(generator.shares),
            "directions": DIRECTIONS,
            "explained": generator.explained,
        },
        "queries": QUERIES,
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    plot(results, image)
    click.echo(table(results))
    click.echo(out)


if __name__ == "__main__":
    main()
