"""Our training against a plain PyTorch loop, side by side: tokens per second, memory, MFU.

Both train a Llama of random weights on the same pieces, in the same micro-batches, with the same
optimiser and precision. Each measurement is a process of its own; the two take turns, and the first
epoch, which warms up, is not counted.

    python -m kinject_assets_tests.bench.training                         what `make bench` runs
    python -m kinject_assets_tests.bench.training --size 7B --method full --dtype bfloat16 \
      --batch 64 --micro-batch 8 --steps 10 --peak-tflops 989             on one H100 or H200
"""

import json
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from kinject_assets.core.schema import Chunk
from kinject_assets.core.store import read_rows, write_rows
from kinject_assets.core.training.models import load_model, load_tokenizer, resolve_device
from kinject_assets.core.training.packing import Packer, encode_texts, recipe_texts
from kinject_assets.core.training.trainer import TrainRequest, train
from kinject_assets_tests.bench.scoring import SIZES as SCORED
from kinject_assets_tests.bench.scoring import Size, prepare

SIZES = {
    **{name: replace(size, vocabulary=8192) for name, size in SCORED.items() if name != "1.1B"},
    "1.1B": SCORED["1.1B"],
    "7B": Size(4096, 11_008, 32, 32),
}
"""The last one has the shape of Llama 2 7B."""

PIECE = 256
RATE = 1e-5
WAYS = ("plain", "kinject")


def write_chunks(path: Path, pieces: int) -> None:
    """Text for at least so many pieces: a word is a token or more."""
    draw = random.Random(5)
    words = ["the", "harbour", "of", "was", "rebuilt", "in", "by", "crowns", "museum", "bridge"]
    rows = [
        Chunk(
            chunk_id=f"c{number}",
            article_id="a",
            revision_id="r",
            ordinal=number,
            title="t",
            section="",
            n_tokens=PIECE,
            small=False,
            text=" ".join(draw.choice(words) for _ in range(PIECE)),
        )
        for number in range(pieces)
    ]
    write_rows(path, rows, Chunk)


def request_of(folder: Path, case: dict[str, Any]) -> TrainRequest:
    """One trial of two epochs, without validation."""
    return TrainRequest(
        checkpoint_id="bench",
        corpus="bench",
        model=case["size"],
        recipe=f"{case['method']}.p00",
        seed=0,
        method=case["method"],
        base=str(folder / "model"),
        dtype=case["dtype"],
        chunks=str(folder / "chunks.parquet"),
        training={
            "piece_tokens": PIECE,
            "epochs": 2,
            "batch_pieces": case["batch"],
            "micro_batch": case["micro_batch"],
            "learning_rates": (RATE,),
            "keep": "last",
        },
        work=str(folder / "work"),
        out=str(folder / "out"),
        device=case["device"],
        resume_seconds=1e9,
    )


def by_kinject(folder: Path, case: dict[str, Any]) -> float:
    """Seconds of the second epoch."""
    request = request_of(folder, case)
    # What is finished is not trained again.
    shutil.rmtree(request.work, ignore_errors=True)
    train(request)
    record = json.loads((Path(request.work) / "trial-0" / "trial.json").read_text())
    return record["epochs"][1]["seconds"]


def by_plain_loop(folder: Path, case: dict[str, Any]) -> float:
    """The same by a loop as one writes it by hand; seconds of the second epoch."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy

    device = resolve_device(case["device"])
    full = case["method"] == "full"
    torch.manual_seed(0)
    model: Any = load_model(
        str(folder / "model"), dtype="float32" if full else case["dtype"], device=str(device)
    )
    if not full:
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0, fused=True)
    kind = getattr(torch, case["dtype"])
    pieces_of = packer(folder)
    began = time.monotonic()
    for epoch in range(2):
        # Of the first one, which warms up, the time is not kept.
        began = time.monotonic()
        pieces = [p for p in pieces_of.pieces(epoch) if len(p) == PIECE]
        for start in range(0, len(pieces), case["batch"]):
            step = pieces[start : start + case["batch"]]
            count = sum(len(piece) - 1 for piece in step)
            total = torch.zeros((), device=device)
            for place in range(0, len(step), case["micro_batch"]):
                ids = torch.stack(
                    [torch.as_tensor(p) for p in step[place : place + case["micro_batch"]]]
                ).to(device)
                with torch.autocast(device.type, dtype=kind, enabled=kind != torch.float32):
                    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
                loss = cross_entropy(
                    logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
                )
                (loss / count).backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            float(total)
    return time.monotonic() - began


def packer(folder: Path) -> Packer:
    """The pieces that both train on."""
    tokenizer = load_tokenizer(str(folder / "model"))
    texts = recipe_texts(read_rows(folder / "chunks.parquet", Chunk), [], 0)
    return Packer(encode_texts(tokenizer, texts), PIECE, 0)


def measure(folder: Path, way: str, case: dict[str, Any]) -> dict[str, Any]:
    """One way, in this process."""
    import torch

    seconds = (by_kinject if way == "kinject" else by_plain_loop)(folder, case)
    tokens = packer(folder).epoch_tokens
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "gpu_gb": memory,
    }


def in_child(folder: Path, way: str, case: dict[str, Any]) -> dict[str, Any]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", __spec__.name if __spec__ else __name__]
    done = subprocess.run(
        [*words, "--child", way, "--folder", str(folder), "--case", json.dumps(case)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_case(case: dict[str, Any], steps: int, repeats: int) -> dict[str, Any]:
    """Both ways by turns."""
    size = SIZES[case["size"]]
    with tempfile.TemporaryDirectory(prefix="kinject-bench-") as name:
        folder = Path(name)
        write_chunks(folder / "chunks.parquet", steps * case["batch"])
        texts = [chunk.text for chunk in read_rows(folder / "chunks.parquet", Chunk)]
        prepare(folder / "model", size, texts)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way in WAYS:
                runs[way].append(in_child(folder, way, case))
                click.echo(f"{case['size']} {case['method']} {way}: {runs[way][-1]}", err=True)
    speed = {
        way: statistics.median(run["tokens_per_second"] for run in found)
        for way, found in runs.items()
    }
    parameters = 2 * size.vocabulary * size.hidden + size.layers * (
        4 * size.hidden**2 + 3 * size.hidden * size.inner
    )
    return {
        **case,
        "shape": asdict(size),
        "parameters": parameters,
        "tokens_per_second": speed,
        "kinject_by_plain": speed["kinject"] / speed["plain"],
        "runs": runs,
    }


@click.command(help=__doc__)
@click.option("--size", "sizes", multiple=True, default=("35M",), type=click.Choice(list(SIZES)))
@click.option("--method", "methods", multiple=True, default=("full", "lora"))
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--batch", default=8, show_default=True, help="Pieces of 256 tokens a step.")
@click.option("--micro-batch", default=4, show_default=True)
@click.option("--steps", default=6, show_default=True, help="Steps an epoch, at least.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--peak-tflops", type=float, help="Peak of the GPU at this dtype, for MFU.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("data/out/bench/training.json"),
    show_default=True,
)
@click.option("--child", hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
@click.option("--case", hidden=True)
def main(
    sizes: Sequence[str],
    methods: Sequence[str],
    dtype: str,
    device: str,
    batch: int,
    micro_batch: int,
    steps: int,
    repeats: int,
    peak_tflops: float | None,
    out: Path,
    child: str | None,
    folder: Path | None,
    case: str | None,
) -> None:
    if child and folder and case:
        click.echo(json.dumps(measure(folder, child, json.loads(case))))
        return
    results: list[dict[str, Any]] = []
    for size in sizes:
        for method in methods:
            asked = {
                "size": size,
                "method": method,
                "dtype": dtype,
                "device": device,
                "batch": batch,
                "micro_batch": micro_batch,
            }
            results.append(run_case(asked, steps, repeats))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    for row in results:
        click.echo(
            f"{row['size']} {row['method']}: {row['tokens_per_second']['kinject']:,.0f} tokens/s, "
            f"{row['kinject_by_plain']:.2f} times the plain loop"
        )
    click.echo(out)


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": platform.machine(), "threads": torch.get_num_threads(), "gpu": gpu}


if __name__ == "__main__":
    main()
