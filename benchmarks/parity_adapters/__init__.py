"""What parity has to know of each reference detector: one module each (docs/parity.md)."""
