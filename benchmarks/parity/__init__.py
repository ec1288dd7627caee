"""Parity of detectors with their references; `python -m benchmarks.parity` runs the cases."""
