"""What a measurement was made with."""

import importlib.metadata
import os
import pathlib
import platform


def describe() -> dict:
    """Processor, cores, device and versions; no host name and no path."""
    import jax  # here, as some benchmarks need it for this alone

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
