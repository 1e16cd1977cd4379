"""`kinject quick` from end to end: profile, service, pilot, words; the result is kept."""

import json

from rich.console import Console

from kinject_assets.config import LLM
from kinject_assets.core.lake.opening import open_store
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.llm.service import address_of
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.quick.pilot import Limits, run_pilot
from kinject_assets.core.quick.preparing import Wanted, prepare
from kinject_assets.core.quick.words import caveats, next_steps, sentences, text
from kinject_assets.display import StepDisplay

RESULT = "quick.json"
"""Name of the result below the study's folder."""


def ask_quickly(wanted: Wanted, limits: Limits, as_json: bool) -> str:
    """Runs a pilot with progress on stderr, and keeps its result as `quick.json`.

    Returns:
        What to print: sentences, or the same with all numbers as JSON.

    Raises:
        KinjectError: If it cannot be done; the message says what to mend.
    """
    with StepDisplay(Console(stderr=True)) as display:
        profile, said = prepare(wanted, display)
        for line in said:
            display.say(line)
        store = open_store(profile)

        def connect(settings: LLM) -> LLMClient:
            ledger = Ledger(store.lake / "llm_ledger")
            return LLMClient(settings, base_url=address_of(profile), ledger=ledger, report=display)

        try:
            found = run_pilot(profile, wanted.model, store, connect, limits, display)
        finally:
            store.push()
    result = {
        **found.to_dict(),
        "sentences": sentences(found),
        "caveats": caveats(found),
        "next": next_steps(found),
    }
    as_text = json.dumps(result, indent=2, ensure_ascii=False)
    write_atomically(store.root / RESULT, f"{as_text}\n")
    return as_text if as_json else text(found)
