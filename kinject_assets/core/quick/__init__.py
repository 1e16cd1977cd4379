"""The short way: from a folder of documents to "is retrieval worth it here?" in some minutes.

`prepare` writes the profile or finds it; `Pilot` asks question after question until it is decided;
`conclude` says what that means; `words` puts it into sentences. No Dagster run is made. All that is
paid for lies in the study's ledger, where `kinject run` finds it.
"""

from kinject_assets.core.quick.outcome import Outcome
from kinject_assets.core.quick.pilot import Limits, run_pilot
from kinject_assets.core.quick.preparing import Wanted, prepare

__all__ = ["Limits", "Outcome", "Wanted", "prepare", "run_pilot"]
