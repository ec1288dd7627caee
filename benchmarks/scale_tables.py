"""Published speeds of links between devices, and the tables of docs/scale_on_paper.md.

That page has the sources.  Speeds are those of one direction.  In a ring of n devices each sends
every byte of a sum 2 (n - 1) / n times, first to add up and then to hand out.  A ring enters and
leaves a host once, so the adapters of a host share its bytes.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks import command

SHARE = 0.4  # of the peak that training is meant to reach; the goal of benchmarks.gpu
MOST = 256  # devices, or hosts


class Chip(NamedTuple):
    """A device."""

    peak: float  # operations/s, dense bfloat16
    of_host: int  # devices


class Link(NamedTuple):
    """What connects devices."""

    name: str
    bytes_s: float  # out of a device, or out of a host if it connects hosts
    chip: str
    meshes: tuple[int, ...]  # devices that it can connect


CHIPS = {"H200": Chip(989e12, 8), "TPU v5e": Chip(197e12, 8)}
LINKS = (
    Link("NVLink 4", 450e9, "H200", (8,)),
    Link("InfiniBand NDR, 8 a host", 8 * 50e9, "H200", (64, 256)),
    Link("InfiniBand NDR, 1 a host", 50e9, "H200", (64, 256)),
    Link("ICI", 200e9, "TPU v5e", (8, 64, 256)),
)
# Detector -> (its recipe in loader_cpu.json, files that an image is made of).
_READ = {
    "retinanet": ("1x/coco", 1),
    "faster_rcnn": ("1x/coco", 1),
    "yolov5l": ("yolov5/coco", 4),
}


def ring_s(total: float, devices: int, bytes_s: float) -> float:
    """Seconds to add up `total` bytes of each device in a ring."""
    return 2 * (devices - 1) / devices * total / bytes_s


def image_s(operations: float, chip: Chip) -> float:
    """Seconds that an image of a training step takes a chip at `SHARE` of its peak."""
    return operations / (SHARE * chip.peak)


def cores(images_s: float, cpu_ms: float) -> float:
    """Processor cores that make so many images a second."""
    return images_s * cpu_ms / 1000


def exchanged(rows: Mapping[str, Any]) -> str:
    """What devices exchange in a step, a row for each detector, type and number of devices."""
    lines = []
    for dtype in ("float32", "bfloat16"):
        for detector, steps in _steps(rows, dtype).items():
            for row in steps:
                found = row["exchanges"]
                lines.append(
                    (
                        detector,
                        dtype,
                        str(row["devices"]),
                        f"{row['trained_bytes'] / 1e6:.2f}",
                        f"{summed(row) / 1e6:.2f}",
                        ", ".join(f"{x['count']} {kind}" for kind, x in found.items()),
                        str(row["rounds"]),
                    )
                )
    head = ("detector", "computes in", "devices", "trained parameters, MB", "summed a step, MB")
    return command.table((*head, "exchanges", "rounds"), lines)


def network(rows: Mapping[str, Any]) -> str:
    """The milliseconds of a ring for each detector and link, and the images that hide them."""
    lines = []
    for detector, steps in _steps(rows).items():
        total = {row["devices"]: summed(row) for row in steps}
        for link in LINKS:
            of_image = image_s(rows[f"{detector}/image"]["flop"], CHIPS[link.chip])
            ring = {n: ring_s(total[n], n, link.bytes_s) for n in link.meshes}
            lines.append(
                (
                    detector,
                    f"{link.name} ({link.chip})",
                    *(f"{1000 * ring[n]:.2f}" if n in ring else "" for n in total),
                    f"{1000 * of_image:.2f}",
                    str(math.ceil(max(ring.values()) / of_image)),
                )
            )
    meshes = (f"{n} devices, ms" for n in total)
    head = ("detector", "link", *meshes, "an image, ms", "images a device that hide it")
    return command.table(head, lines)


def gathered(rows: Mapping[str, Any]) -> str:
    """The bytes that evaluation gathers for each detector."""
    images = rows["scoring"]["images"]
    lines = []
    for detector in _READ:
        size = rows[f"{detector}/image"]["gathered_bytes"]
        lines.append(
            (detector, str(size), f"{MOST * size / 1e6:.2f}", f"{images * size / 1e6:.1f}")
        )
    head = ("detector", "bytes an image", f"{MOST} images, MB", f"{images} images, MB")
    return command.table(head, lines)


def reading(rows: Mapping[str, Any], loader: Mapping[str, Any]) -> str:
    """The cores and bytes a second that feed a host of H200s at the goal's speed.

    Args:
      rows: those of scale.json.
      loader: loader_cpu.json.
    """
    chip, lines = CHIPS["H200"], []
    for detector, (recipe, files_each) in _READ.items():
        speed = 1 / image_s(rows[f"{detector}/image"]["flop"], chip)
        cpu_ms = loader["rows"][recipe]["measured"][0]["cpu_ms"]
        needed = chip.of_host * cores(speed, cpu_ms)
        bytes_s = chip.of_host * speed * files_each * loader["data"]["mean_kib"] * 1024
        lines.append(
            (
                detector,
                f"`{recipe}`",
                f"{speed:.0f}",
                f"{cpu_ms:.1f}",
                f"{needed / chip.of_host:.1f}",
                f"{needed:.0f}",
                f"{bytes_s / 1e6:.0f}",
                f"{MOST * bytes_s / 1e9:.0f}",
            )
        )
    head = ("detector", "recipe", "images/s of an H200", "CPU ms an image", "cores of one")
    of_hosts = (f"cores of {chip.of_host}", "MB/s of a host", f"GB/s of {MOST} hosts")
    return command.table((*head, *of_hosts), lines)


def summed(row: Mapping[str, Any]) -> int:
    """The bytes of a step that every device sums with the others."""
    return row["exchanges"]["all-reduce"]["bytes"]


def _steps(rows: Mapping[str, Any], dtype: str = "float32") -> dict[str, list[dict]]:
    """Detector -> the rows of its steps in a type, by devices."""
    found: dict[str, list[dict]] = {}
    for name, row in rows.items():
        detector, *parts = name.split("/")
        if "exchanges" in row and (parts[1:] or ["float32"]) == [dtype]:
            found.setdefault(detector, []).append(row)
    return {name: sorted(steps, key=lambda x: x["devices"]) for name, steps in found.items()}
