"""The language model service: one client, its ledger and its prices."""
