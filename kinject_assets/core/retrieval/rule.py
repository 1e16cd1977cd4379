"""Which index suits a corpus: a rule on the number of vectors, their dimension and the memory.

Its bounds come from `docs/benchmarks/index.json`; `docs/retrieval.md` says how.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from kinject_assets import config
from kinject_assets.core.errors import ProfileError

Kind = Literal["flat", "hnsw", "ivfpq"]

FLAT_NUMBERS = 200_000 * 384
"""Numbers of all vectors together up to which every query is compared with all of them."""

PQ_LEAST = 39 * 256
"""Fewest vectors that IVF-PQ is trained on: FAISS asks for 39 for each of 256 centroids."""

TRAINING = 40
"""Vectors for each list that IVF-PQ is trained on."""

PARAMETERS: dict[Kind, tuple[str, ...]] = {
    "flat": (),
    "hnsw": ("hnsw_m", "ef_construction", "ef_search"),
    "ivfpq": ("nlist", "nprobe", "pq_m", "refine"),
}
"""Kind of index -> its parameters, all whole numbers from 1."""

RECALL = 0.95
"""Share of the nearest that an approximate index is made to find."""

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class IndexChoice:
    """An index, and why it was chosen.

    Attributes:
        parameters: As `config.IndexParameters` names them, those that the kind has.
        bytes: What the index takes, in memory and on the disk.
        reason: For people.
    """

    kind: Kind
    parameters: dict[str, int]
    bytes: int
    reason: str


def choose_index(
    vectors: int,
    dimension: int,
    memory_gb: float,
    kind: Literal["auto", "flat", "hnsw", "ivfpq"] = "auto",
    parameters: config.IndexParameters | None = None,
) -> IndexChoice:
    """The index for a corpus, made to find `RECALL` of the ten nearest or more.

    Args:
        vectors: How many there are.
        dimension: Numbers of each.
        memory_gb: Memory that the index may take, in 10^9 bytes.
        kind: Other than `auto`: that one.
        parameters: Those that are set stand in place of the rule's.

    Raises:
        ProfileError: If `pq_m` does not divide the dimension.
    """
    given = (parameters or config.IndexParameters()).model_dump(exclude_none=True)
    shape, limit = f"{vectors:,} vectors of {dimension}", memory_gb * GB
    flat, hnsw = _flat(vectors, dimension), _hnsw(vectors, dimension, given)
    if kind == "flat":
        return replace(flat, reason="as the profile says; exact")
    if kind == "hnsw":
        return replace(hnsw, reason="as the profile says")
    if kind == "auto" and vectors * dimension <= FLAT_NUMBERS and flat.bytes <= limit:
        return replace(flat, reason=f"exact, and {shape} are searched whole in little time")
    if kind == "auto" and hnsw.bytes <= limit:
        return replace(
            hnsw, reason=f"{shape} are too many to search whole and fit in {memory_gb:g} GB"
        )
    if vectors < PQ_LEAST:
        return replace(
            flat, reason=f"exact; {shape} are too few to train IVF-PQ ({PQ_LEAST:,} needed)"
        )
    ivfpq = _ivfpq(vectors, dimension, limit, given)
    if kind == "ivfpq":
        return replace(ivfpq, reason="as the profile says")
    fits = "compressed they do" if ivfpq.bytes <= limit else "compressed they come nearest to that"
    return replace(ivfpq, reason=f"{shape} do not fit in {memory_gb:g} GB; {fits}")


def _flat(vectors: int, dimension: int) -> IndexChoice:
    return IndexChoice(kind="flat", parameters={}, bytes=4 * vectors * dimension, reason="")


def _hnsw(vectors: int, dimension: int, given: dict[str, int]) -> IndexChoice:
    m = given.get("hnsw_m", 32)
    # A vector, its 2 m neighbours below, m of each level above for one in m, level and offset.
    each = 4 * dimension + 8 * m + 4 * m / (m - 1) + 12
    parameters = {
        "hnsw_m": m,
        "ef_construction": given.get("ef_construction", 200),
        "ef_search": given.get("ef_search", 256),
    }
    return IndexChoice(
        kind="hnsw", parameters=parameters, bytes=math.ceil(vectors * each), reason=""
    )


def _ivfpq(vectors: int, dimension: int, limit: float, given: dict[str, int]) -> IndexChoice:
    nlist = given.get("nlist") or 2 ** round(math.log2(4 * math.sqrt(vectors)))
    nlist = max(1, min(nlist, vectors // TRAINING))
    fixed = 4 * dimension * (nlist + 256)

    def size(m: int) -> int:
        return vectors * (m + 8) + fixed

    divisors = [m for m in range(1, dimension + 1) if dimension % m == 0]
    m = given.get("pq_m")
    if m is None:
        # One bit a number; fewer where the memory asks for it.
        best = min(divisors, key=lambda m: abs(math.log(8 * m / dimension)))
        fitting = [m for m in divisors if m <= best and size(m) <= limit]
        m = max(fitting, default=divisors[0])
    elif m not in divisors:
        near = sorted(divisors, key=lambda d: abs(math.log(d / m)))[:2]
        raise ProfileError(
            f"retrieval.index_parameters.pq_m: {m} does not divide {dimension}, the dimension of "
            f"the encoder's vectors. Give {' or '.join(map(str, sorted(near)))}, or leave it out."
        )
    parameters = {
        "nlist": nlist,
        "nprobe": min(nlist, given.get("nprobe") or max(16, nlist // 32)),
        "pq_m": m,
        "refine": given.get("refine", 20),
    }
    return IndexChoice(kind="ivfpq", parameters=parameters, bytes=size(m), reason="")
