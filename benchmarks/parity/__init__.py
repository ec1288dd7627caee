"""Whether detectors are those of their references; `python -m benchmarks.parity` runs cases."""
