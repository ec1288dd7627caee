r"""Checks that memory and compilations of a training run are flat after the first epoch.

    python -m benchmarks.memory --config experiments/retinanet_shapes.py \
        --config.train.steps=2000 --json memory.json --picture memory.png

Trains in this process.  Every two seconds it samples the memory of the process, the arrays that jax
holds, on an accelerator the memory that its allocator reports, and the number of compiled programs.
A run is judged from the end of the first epoch, or the first evaluation if that is later, to the
last step.  It is flat if no program is compiled and the memory of process, arrays and device grows
by less than 2 % of its mean, or 1 MiB if that is more, per 1000 steps, by a straight line fitted to
all samples.  The samples include memory that evaluations take temporarily.  Reads Linux's /proc.
"""

import os
import pathlib
import tempfile
import threading
import time
from typing import NamedTuple

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.memory(__doc__))  # --help needs no import below

import jax
import numpy as np

from benchmarks import machine
from detlab import data_sets, errors, files, train
from detlab.data import plan
from detlab.run import length as length_lib
from detlab.run import log as log_lib

FLAT = 0.02  # of the mean, per 1000 steps
FLAT_MIB = 1.0  # if that is more: one more batch in flight is not growth


class Sample(NamedTuple):
    """Measurements at one time."""

    seconds: float  # since the start
    step: int  # the last in the log
    process: float  # MiB of resident memory
    arrays: float  # MiB of jax.live_arrays()
    device: float | None  # MiB in use, as an accelerator's allocator reports
    device_peak: float | None
    compiled: int  # programs so far, compiled or taken from the compilation cache


MEMORY = {
    "process": "resident memory of the process",
    "arrays": "live jax arrays",
    "device": "in use on the device",
}


def main(arguments) -> None:
    args, overrides = cli.parse(arguments, flags.memory(__doc__))
    config = config_lib.load(args.config, overrides)
    warm, total = warm_step(config)
    with tempfile.TemporaryDirectory(prefix="memory") as workdir:
        words = ["--config", args.config, "--workdir", workdir]
        words += [f"--config.{key}={value}" for key, value in overrides.items()]
        with Sampler(pathlib.Path(workdir) / "metrics.jsonl", args.every) as sampler:
            train.main(words)
    samples = sampler.samples
    result = summarise(samples, warm, total)
    print(table(samples))
    print(verdict(result))
    if args.picture:
        draw(samples, warm, args.picture)
    if args.json:
        report = {"machine": machine.describe(), "config": args.config, "overrides": overrides}
        report |= {**result, "samples": [sample._asdict() for sample in samples]}
        files.write_json(args.json, report)


def warm_step(config) -> tuple[int, int]:
    """(step after which memory should be flat, last step)."""
    sizes = plan.source_sizes(data_sets.open_source(config, "train"))
    per_epoch = plan.steps_per_epoch(sizes, config.train.batch_size, config.data.canvases)
    length = length_lib.of(config.train, per_epoch)
    return max(per_epoch, length.eval_every), length.total


class Sampler:
    """Takes samples in a thread inside its `with` block."""

    def __init__(self, log: pathlib.Path, every: float):
        self.samples: list[Sample] = []
        self._log, self._every = log, every
        self._compiled = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._start = time.time()
        jax.monitoring.register_event_duration_secs_listener(self._count)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        jax.monitoring.unregister_event_duration_listener(self._count)

    def _count(self, event: str, seconds: float, **_) -> None:
        # jax reports every new program, even one from the compilation cache.
        self._compiled += event == "/jax/core/compile/backend_compile_duration"

    def _run(self) -> None:
        while not self._over.wait(self._every):
            self.samples.append(self._sample())
        self.samples.append(self._sample())

    def _sample(self) -> Sample:
        rows = log_lib.read_rows(self._log)
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        allocator = jax.local_devices()[0].memory_stats() or {}
        return Sample(
            seconds=round(time.time() - self._start, 1),
            step=rows[-1]["step"] if rows else 0,
            process=_mib(pages * os.sysconf("SC_PAGE_SIZE")),
            arrays=_mib(sum(array.nbytes for array in jax.live_arrays())),
            device=_mib(allocator.get("bytes_in_use")),
            device_peak=_mib(allocator.get("peak_bytes_in_use")),
            compiled=self._compiled,
        )


def summarise(samples: list[Sample], warm: int, total: int) -> dict:
    """Mean and growth of each kind of memory, and compilations, after the step `warm`."""
    after = [sample for sample in samples if warm < sample.step < total]
    steps = np.array([sample.step for sample in after], float)
    result = {"warm_step": warm, "last_step": total, "samples_after": len(after), "memory": {}}
    if len(set(steps)) < 2:
        return result | {"compiled_after": None, "flat": None}
    flat = True
    for kind in MEMORY:
        values = np.array([getattr(sample, kind) for sample in after], float)
        if np.isnan(values).all():  # a CPU has no allocator to ask
            continue
        slope, _ = np.polyfit(steps / 1000, values, 1)
        flat &= slope < max(FLAT * values.mean(), FLAT_MIB)
        result["memory"][kind] = {
            "mean_mib": round(float(values.mean()), 1),
            "least_mib": round(float(values.min()), 1),
            "most_mib": round(float(values.max()), 1),
            "mib_per_1000_steps": round(float(slope), 2),
            "growth_per_1000_steps": round(float(slope / values.mean()), 4),
        }
    compiled = after[-1].compiled - after[0].compiled
    return result | {"compiled_after": compiled, "flat": bool(flat and compiled == 0)}


def table(samples: list[Sample]) -> str:
    """The first sample of every hundred steps, one per line."""
    lines = [f"{'step':>6}  {'process':>8}  {'arrays':>7}  {'device':>7}  {'programs':>8}"]
    shown = -1
    for sample in samples:
        if sample.step // 100 > shown:
            shown = sample.step // 100
            device = "-" if sample.device is None else f"{sample.device:.1f}"
            lines.append(
                f"{sample.step:6}  {sample.process:8.1f}  {sample.arrays:7.2f}  {device:>7}"
                f"  {sample.compiled:8}"
            )
    return "\n".join(lines) + "\nmemory in MiB; programs compiled or taken from the cache"


def verdict(result: dict) -> str:
    if result["flat"] is None:
        return f"too few samples after step {result['warm_step']} to judge"
    lines = [
        f"{MEMORY[kind]}: {found['mib_per_1000_steps']:+.2f} MiB per 1000 steps"
        f" ({found['growth_per_1000_steps']:+.2%} of {found['mean_mib']:.0f} MiB)"
        for kind, found in result["memory"].items()
    ]
    lines.append(f"programs compiled after step {result['warm_step']}: {result['compiled_after']}")
    word = "flat" if result["flat"] else "NOT flat"
    lines.append(
        f"{word}: the bounds are {FLAT:.0%} or {FLAT_MIB:g} MiB per 1000 steps, no compilation"
    )
    return "\n".join(lines)


def draw(samples: list[Sample], warm: int, path: pathlib.Path) -> None:
    """Draws memory over steps; the run warms up until the dashed line."""
    from matplotlib import figure as figure_lib  # here, so that programs start without it

    kinds = [kind for kind in MEMORY if getattr(samples[-1], kind) is not None]
    figure = figure_lib.Figure(figsize=(8, 2.2 * len(kinds) + 2.2), layout="constrained")
    axes = figure.subplots(len(kinds) + 1, sharex=True)
    steps = [sample.step for sample in samples]
    for axis, kind in zip(axes, [*kinds, "compiled"], strict=True):
        axis.plot(steps, [getattr(sample, kind) for sample in samples], linewidth=1)
        axis.axvline(warm, color="grey", linestyle="--", linewidth=1)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        title = f"{MEMORY[kind]}, MiB" if kind in MEMORY else "programs compiled"
        axis.set_title(title, loc="left", fontsize=10)
    axes[-1].set_xlabel(f"step (dashed: {warm}, should be flat from there)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _mib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**20, 2)


if __name__ == "__main__":
    errors.run_main(main)
