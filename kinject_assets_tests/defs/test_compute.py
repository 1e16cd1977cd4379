"""How heavy steps are run."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from kinject_assets.core.scoring import lm
from kinject_assets.defs import compute


@pytest.mark.parametrize(("processes", "kept"), [(1, True), (2, False)])
def test_training_in_other_processes_finds_the_gpu_free(
    monkeypatch: pytest.MonkeyPatch, processes: int, kept: bool
) -> None:
    held: list[bool] = []

    def noted(*_: Any) -> dict[str, Any]:
        held.append(bool(lm._loaded))
        return {}

    monkeypatch.setenv("KINJECT_COMPUTE", "inline")
    monkeypatch.setattr(compute, "run_worker", noted)
    monkeypatch.setattr(lm, "_loaded", type(lm._loaded)({("m",): object()}))
    context = SimpleNamespace(log=logging.getLogger("test"))
    step: Any = SimpleNamespace(context=context, cell="checkpoint")
    compute.run_training(step, {"training": {"processes": processes}})
    assert held == [kept], "one process frees it by itself, in the worker"
