"""detlab: object detectors in JAX and Flax that can be read from top to bottom."""

__version__ = "0.1.0"
