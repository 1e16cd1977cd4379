"""What assets work with: the profile, its lake, and the services that it names."""

from pathlib import Path

import dagster as dg

from kinject_assets.config import LLM, Profile, Wiki, local_or_hub
from kinject_assets.core.lake.opening import open_store
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.llm.service import address_of
from kinject_assets.core.plan import Plan
from kinject_assets.core.progress import Report
from kinject_assets.core.schema import Generation
from kinject_assets.core.store import Store
from kinject_assets.defs.partitions import PROFILE


def lab_url() -> str:
    """Address of the lab's server."""
    from kinject_assets.lab.server import address_of

    return address_of(PROFILE)


class Study(dg.ConfigurableResource):
    """The profile, its lake, and the services that it names."""

    @property
    def profile(self) -> Profile:
        """The experiment, with the releases of its lake."""
        return self.plan.profile

    @property
    def store(self) -> Store:
        """The profile's lake."""
        return open_store(PROFILE, refresh=False)

    @property
    def database(self) -> Path:
        """The results, as one DuckDB file."""
        return self.store.root / "results.duckdb"

    @property
    def plan(self) -> Plan:
        """The cells that the profile asks for."""
        return Plan(PROFILE, self.store)

    @property
    def ledger(self) -> Ledger:
        """Every request that was ever sent to the language model service."""
        return Ledger(self.store.lake / "llm_ledger")

    def generations(self) -> list[Generation]:
        """The ledger's requests with what they cost."""
        return self.ledger.generations(PROFILE.llm.prices)

    def wikis(self) -> dict[str, Wiki]:
        """The profile's wikis with real addresses."""
        return {
            name: wiki.model_copy(update={"api_url": f"{lab_url()}/w/api.php"})
            if wiki.api_url == "lab"
            else wiki
            for name, wiki in PROFILE.wikis.items()
        }

    def llm(self, settings: LLM, report: Report) -> LLMClient:
        """The one client for questions and paraphrases."""
        return LLMClient(settings, base_url=address_of(PROFILE), ledger=self.ledger, report=report)

    def located(self, name: str) -> str:
        """Folder or hub id of a model, encoder or tokenizer that the profile names."""
        return local_or_hub(PROFILE, name)
