"""Published speeds of links between devices, and the arithmetic of docs/scale_on_paper.md.

That page has the sources.  Speeds are those of one direction.  In a ring of n devices each sends
every byte of a sum 2 (n - 1) / n times, first to add up and then to hand out.  A ring enters and
leaves a host once, so the adapters of a host share its bytes.
"""

from typing import NamedTuple

SHARE = 0.4  # of the peak that training is meant to reach; the goal of benchmarks.gpu


class Chip(NamedTuple):
    """A device."""

    name: str
    peak: float  # operations/s, dense bfloat16
    of_host: int  # devices


class Link(NamedTuple):
    """What connects devices."""

    name: str
    bytes_s: float  # out of a device, or out of a host if it connects hosts
    chip: str
    meshes: tuple[int, ...]  # devices that it can connect


CHIPS = {
    "H200": Chip("H200", 989e12, 8),
    "TPU v5e": Chip("TPU v5e", 197e12, 8),
}
LINKS = (
    Link("NVLink 4", 450e9, "H200", (8,)),
    Link("InfiniBand NDR, 8 a host", 8 * 50e9, "H200", (64, 256)),
    Link("InfiniBand NDR, 1 a host", 50e9, "H200", (64, 256)),
    Link("ICI", 200e9, "TPU v5e", (8, 64, 256)),
)


def ring_s(total: float, devices: int, bytes_s: float) -> float:
    """Seconds to add up `total` bytes of each device in a ring."""
    return 2 * (devices - 1) / devices * total / bytes_s


def image_s(operations: float, chip: Chip) -> float:
    """Seconds that an image of a training step takes a chip at `SHARE` of its peak."""
    return operations / (SHARE * chip.peak)


def cores(images_s: float, cpu_ms: float) -> float:
    """Processor cores that make so many images a second."""
    return images_s * cpu_ms / 1000
