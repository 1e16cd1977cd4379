"""Intervals, paired tests, power, the choice of K, and the claims of the study."""
