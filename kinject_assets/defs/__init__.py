"""Everything that imports dagster: thin assets, one module per stage, in the order of the data."""

import warnings

import dagster as dg

# Links to the source code and conditions of our own are beta in Dagster, and Pipes reads a preview
# property of its own: it would say so once an asset and once a worker.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
