from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kinject_assets import config
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.lab.server import running
from kinject_assets.lab.writer import MODEL


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    with running(config.Lab()) as address:
        yield address


@pytest.fixture
def client_on(lab: str, tmp_path: Path) -> Callable[[str], LLMClient]:
    """Builds a client on the lab's writer, with a ledger of the given name."""

    def build(ledger: str) -> LLMClient:
        settings = config.LLM(model=MODEL, timeout=20)
        return LLMClient(settings, base_url=f"{lab}/v1", ledger=Ledger(tmp_path / ledger))

    return build
