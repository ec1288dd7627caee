"""Cuts the compact case in this folder from the recorded one.

    python tests/data/parity/cut.py ../shared/parity

It is the same run of the reference, mmdet 3.3.0's RetinaNet-50 (Apache-2.0) with made-up weights,
with fewer numbers: every nth value of long maps, and two digits of the drift.  The maps of the
training step, the overlaps of the anchors and the step in float64 are omitted.
"""

import json
import pathlib
import sys

import numpy as np

NAME = "retinanet_r50_fpn"
MOST = 4096  # values kept per map
PRIMES = (2, 3, 5, 7, 11, 13)  # steps that pass through all channels and columns


def main(source: pathlib.Path) -> None:
    info = json.loads((source / f"{NAME}.json").read_text())
    with np.load(source / f"{NAME}.npz") as file:
        arrays = dict(file)
    whole = ("image", "gt_", "det_", "train_assign.", "train_targets.")
    kept, sampled = {}, {}
    for name, values in arrays.items():
        if name.endswith(".max_overlaps"):
            continue
        if name.startswith(whole):
            kept[name] = values
        elif not name.startswith("train_"):
            entry = info["sampled"].get(name, {"shape": list(values.shape), "step": 1})
            step = next(p for p in (1, *PRIMES) if values.size <= p * MOST)
            kept[name] = values.reshape(-1)[::step]
            sampled[name] = {"shape": entry["shape"], "step": entry["step"] * step}
    del info["grad_float64"], info["loss_levels"]
    for of in ("norms", "dots", "vectors"):
        drift = info["grad_drift"][of]
        info["grad_drift"][of] = {key: float(f"{value:.2g}") for key, value in drift.items()}
    target = pathlib.Path(__file__).parent
    np.savez_compressed(target / f"{NAME}.npz", **kept)
    text = json.dumps({**info, "sampled": sampled}, separators=(",", ":"))
    (target / f"{NAME}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
