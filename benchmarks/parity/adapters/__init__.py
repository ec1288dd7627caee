"""What parity has to know of each reference detector: each module with an `ADAPTER` is found."""
