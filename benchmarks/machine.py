"""The machine and the versions that a measurement was made with."""

import importlib.metadata
import os
import platform


def describe() -> dict:
    """Processor, cores, device and versions; no host name and no path."""
    from detlab import environment  # imported here: some benchmarks need jax for nothing else

    return {
        "processor": environment.processor(),
        "cores": os.cpu_count(),
        "device": environment.devices(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
    }
