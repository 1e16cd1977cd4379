"""`hf-prefix` against stock lm-eval, side by side: time, memory, tokens and work of both.

Each measurement is a process of its own that loads the model, reads one question to warm up and
then answers the case; the two scorers take turns. Work is counted in floating-point operations of
the matrix products, logits apart; `limit` is how much less of it shared beginnings need, so it is
the most that sharing can bring where the matrix products take all of the time.

    python -m kinject_assets_tests.bench.scoring            the cases of `make bench`
    python -m kinject_assets_tests.bench.scoring --help     sizes, cases, repeats
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinject_assets.config import MMLUExam
from kinject_assets.core.exams.mmlu import load_mmlu
from kinject_assets.core.scoring.prompts import build
from kinject_assets.core.scoring.sharing import arrange

REALDATA = Path(os.environ.get("KINJECT_REALDATA", "../shared/realdata"))
SUBJECTS = ("anatomy", "astronomy", "college_chemistry")
MERGES = 8192
BATCH = 16
SCORERS = ("stock", "hf-prefix")


@dataclass(frozen=True)
class Size:
    """A Llama of random weights."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int = 32_000


SIZES = {
    "35M": Size(512, 1376, 6, 8),
    "350M": Size(1024, 2816, 24, 16),
    "1.1B": Size(2048, 5632, 22, 32),
}


@dataclass(frozen=True)
class Case:
    """What is answered.

    Attributes:
        questions: The first so many questions of anatomy.
        shots: Solved examples.
        k: Numbers of chunks; each is a condition.
        chunk: Tokens of a chunk.
    """

    questions: int
    shots: int
    k: tuple[int, ...] = (0,)
    chunk: int = 0


CASES = {
    "anatomy, 0-shot": Case(135, 0),
    "anatomy, 5-shot": Case(135, 5),
    "K = 0..5, 5-shot, chunks of 60": Case(32, 5, tuple(range(6)), 60),
    "K = 0..5, 5-shot, chunks of 120": Case(32, 5, tuple(range(6)), 120),
    "K = 0..5, 5-shot, chunks of 256": Case(32, 5, tuple(range(6)), 256),
}


def prepare(folder: Path, size: Size, texts: Sequence[str] = ()) -> None:
    """Saves the model, and a tokenizer trained on texts, or else on the exams."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from kinject_assets_tests.tiny import byte_level_tokenizer

    tokenizer = byte_level_tokenizer(texts or _texts(), MERGES)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _texts() -> list[str]:
    found = [_questions(subject) for subject in SUBJECTS]
    return [f"{q.stem}\n" + "\n".join(q.options) for rows in found for q in rows]


def _questions(subject: str) -> list[Any]:
    if not (REALDATA / "mmlu").is_dir():
        sys.exit(
            "the benchmark answers real MMLU questions: set KINJECT_REALDATA to a folder with "
            "mmlu/{dev,val,test}/SUBJECT_SPLIT.csv"
        )
    exam = MMLUExam(kind="mmlu", subject=subject, folder=REALDATA.resolve() / "mmlu")
    return load_mmlu(exam, Path())


def prompts(case: Case, tokenizer: Any) -> list[tuple[str, str]]:
    """Context and option of every request, condition by condition."""
    questions = _questions("anatomy")
    test = [q for q in questions if q.split == "test"][: case.questions]
    shots = [q for q in questions if q.split == "shots"][: case.shots]
    draw = random.Random(0)
    words = " ".join(_texts()).split()
    chunks: list[list[str]] = []
    for _ in test:
        mine = []
        for _ in range(max(case.k)):
            at = draw.randrange(len(words) - 2 * case.chunk)
            ids = tokenizer.encode(" ".join(words[at : at + 2 * case.chunk]))[: case.chunk]
            mine.append(tokenizer.decode(ids, skip_special_tokens=True))
        chunks.append(mine)
    return [
        (prompt.text, option)
        for k in case.k
        for question, texts in zip(test, chunks, strict=True)
        for prompt in (build(question, "letter", shots, texts[:k], "anatomy"),)
        for option in prompt.options
    ]


def measure(scorer: str, folder: Path, case: Case) -> dict[str, Any]:
    """Answers a case once in this process."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from kinject_assets.core.scoring.hf_prefix import PrefixLM

    stock: Any = HFLM
    lm = (stock if scorer == "stock" else PrefixLM)(
        pretrained=str(folder), device="auto", batch_size=BATCH, dtype="float32"
    )
    pairs = prompts(case, lm.tokenizer)
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
        for i, pair in enumerate(pairs)
    ]
    read: list[tuple[int, ...]] = []
    call = lm.model.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        ids = arguments[0] if arguments else options["input_ids"]
        read.append(tuple(ids.shape))
        return call(*arguments, **options)

    lm.model.forward = counted
    lm.loglikelihood(requests[:4], disable_tqdm=True)
    read.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    answers = lm.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "tokens_forwarded": sum(rows * length for rows, length in read),
        "forward_passes": len(read),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loaded_mib": before / 1024,
        "threads": torch.get_num_threads(),
        "logliks": [value for value, _ in answers],
    }


def work(size: Size, case: Case, folder: Path) -> dict[str, Any]:
    """Tokens and floating-point operations of both, without padding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = dict.fromkeys(context for context, _ in prompts(case, tokenizer))
    # A letter is one token: stock lm-eval reads a question's four options in one input as well.
    inputs: list[list[int]] = tokenizer(list(texts))["input_ids"]
    arrangement = arrange(inputs, [1] * len(inputs))
    per_token = 2 * size.layers * (4 * size.hidden**2 + 3 * size.hidden * size.inner)
    per_pair = 4 * size.layers * size.hidden
    per_row = 2 * size.hidden * size.vocabulary
    alone = {
        "tokens": arrangement.total,
        "pairs": sum(len(i) * (len(i) + 1) // 2 for i in inputs),
        "rows": arrangement.total,
    }
    shared = {
        "tokens": len(arrangement.tokens),
        "pairs": sum(
            p.length * p.start + p.length * (p.length + 1) // 2 for p in arrangement.pieces
        ),
        "rows": len({row for rows in arrangement.rows for row in rows}),
    }

    def flops(of: dict[str, int]) -> dict[str, float]:
        body, logits = of["tokens"] * per_token + of["pairs"] * per_pair, of["rows"] * per_row
        return {**of, "body_tflop": body / 1e12, "logits_tflop": logits / 1e12}

    mine, stock = flops(shared), flops(alone)
    total = {
        name: of["body_tflop"] + of["logits_tflop"] for name, of in (("s", stock), ("m", mine))
    }
    return {
        "stock": stock,
        "hf-prefix": mine,
        "limit": total["s"] / total["m"],
        "limit_of_tokens_alone": stock["body_tflop"] / mine["body_tflop"],
    }


def _child(scorer: str, folder: Path, case: str) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--measure", scorer, str(folder), case]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, size_name: str, case: Case, repeats: int) -> dict[str, Any]:
    """Measures a case with both scorers by turns."""
    size = SIZES[size_name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, size)
        needed = work(size, case, folder)
        runs: dict[str, list[dict[str, Any]]] = {scorer: [] for scorer in SCORERS}
        for _ in range(repeats):
            for scorer in SCORERS:
                runs[scorer].append(_child(scorer, folder, json.dumps(asdict(case))))
    logliks = {scorer: runs[scorer][0].pop("logliks") for scorer in SCORERS}
    for run in (run for found in runs.values() for run in found):
        run.pop("logliks", None)
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(*runs.values(), strict=True)]
    speedup = statistics.median(ratios)
    return {
        "case": name,
        "model": size_name,
        "size": asdict(size),
        **asdict(case),
        "batch_size": BATCH,
        "speedup": speedup,
        "speedups": ratios,
        "limit": needed.pop("limit"),
        "limit_of_tokens_alone": needed.pop("limit_of_tokens_alone"),
        "work": needed,
        "largest_difference": max(abs(a - b) for a, b in zip(*logliks.values(), strict=True)),
        "same_choices": _choices(logliks["stock"]) == _choices(logliks["hf-prefix"]),
        "runs": runs,
    }


def _choices(logliks: Sequence[float]) -> list[int]:
    fours = [logliks[i : i + 4] for i in range(0, len(logliks), 4)]
    return [four.index(max(four)) for four in fours]


def line(found: dict[str, Any]) -> str:
    """One result for people."""
    stock, mine = (found["runs"][scorer] for scorer in SCORERS)
    seconds = [statistics.median(run["seconds"] for run in runs) for runs in (stock, mine)]
    return (
        f"{found['model']:>5}  {found['case']:<32} stock {seconds[0]:8.1f} s   hf-prefix "
        f"{seconds[1]:7.1f} s   {found['speedup']:5.1f}x   limit {found['limit']:5.1f}x   "
        f"reached {found['speedup'] / found['limit']:4.0%}   "
        f"largest difference {found['largest_difference']:.0e}"
    )


def main() -> None:
    """Runs the benchmark and writes a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="35M", help="model (default 35M)")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--questions", type=int, help="first so many questions of every case")
    parser.add_argument("--repeats", type=int, default=1, help="measurements of each (default 1)")
    parser.add_argument("--out", type=Path, default=Path("data/out/bench"), help="folder")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        scorer, folder, case = chosen.measure
        fields = json.loads(case)
        fields["k"] = tuple(fields["k"])
        print(json.dumps(measure(scorer, Path(folder), Case(**fields))))
        return
    found: list[dict[str, Any]] = []
    for name in chosen.case or CASES:
        case = CASES[name]
        if chosen.questions:
            case = Case(**{**asdict(case), "questions": min(chosen.questions, case.questions)})
        found.append(compare(name, chosen.size, case, chosen.repeats))
        print(line(found[-1]), flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / f"scoring-{chosen.size}.json"
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    path.write_text(json.dumps({"machine": machine, "results": found}, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
