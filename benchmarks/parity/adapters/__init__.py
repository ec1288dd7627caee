"""One adapter for each reference detector; every module with an `ADAPTER` is found."""
