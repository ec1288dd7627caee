"""Measurements: each prints a table and writes JSON; ratios come from one run."""
