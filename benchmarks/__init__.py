"""Benchmarks: each prints a table and writes JSON; a ratio compares two programs of one run."""
