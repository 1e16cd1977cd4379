"""What a study will cost before anything is spent, and what it did cost afterwards.

`estimate` reckons from counts that the code implies, on the best knowledge there is of each corpus;
`keep_estimate` writes it down before a run; `compare` puts what was spent beside it. All that is
taken for granted stands in `assumptions`. Nothing here uses the network.
"""

from kinject_assets.core.estimate.reckoning import estimate, keep_estimate

__all__ = ["estimate", "keep_estimate"]
