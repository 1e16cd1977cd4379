"""What chunks that are not there any more leave behind."""

import logging
from pathlib import Path
from types import SimpleNamespace

from kinject_assets.core.schema import Chunk
from kinject_assets.core.store import Cell, Store
from kinject_assets.defs.corpus import _retired
from kinject_assets.defs.io import Step
from kinject_assets_tests.core.results import synthetic

CHUNKS = Cell("chunks", ("rivers",))


def _step(store: Store) -> Step:
    """As much of a step as reads earlier versions, under settings that nothing was made with."""
    step = object.__new__(Step)
    step.cell, step.config = CHUNKS, {"max_tokens": 7}
    step.study = SimpleNamespace(store=store)  # pyright: ignore[reportAttributeAccessIssue]
    step.context = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        log=logging.getLogger("step")
    )
    return step


def test_chunks_that_were_cut_otherwise_stay_on_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert _retired(_step(store), set()) == []
    current, before, long_gone = (synthetic.chunk(number) for number in range(3))
    files = {"chunks": (Chunk, [current, before]), "retired": (Chunk, [long_gone])}
    # By another code version and with other settings than now.
    synthetic.publish(store, CHUNKS, files)
    assert _step(store).previous_rows("chunks", Chunk, "max_tokens") == []
    assert _retired(_step(store), {current.chunk_id}) == [before, long_gone]
    store.path(CHUNKS, "retired.parquet").write_bytes(b"torn")
    assert _retired(_step(store), {current.chunk_id}) == [before]
