"""Reading the recorded cases of the reference implementations (parity/README.md beside them)."""

import hashlib
import importlib.util
import json
import pathlib
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    info: dict
    arrays: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]  # the state dict, in the reference's names and layouts

    def as_stored(self, name: str, whole_nchw: np.ndarray) -> np.ndarray:
        """A full array in the form in which the file has it: some are sampled."""
        if name not in self.info["sampled"]:
            return whole_nchw
        entry = self.info["sampled"][name]
        assert list(whole_nchw.shape) == entry["shape"]
        return whole_nchw.reshape(-1)[:: entry["step"]]

    def error(self, name: str, mine: np.ndarray) -> float:
        """Largest difference over the largest value."""
        theirs = self.arrays[name]
        return np.abs(self.as_stored(name, mine) - theirs).max() / max(np.abs(theirs).max(), 1e-12)


def load(folder: pathlib.Path, name: str) -> Case:
    info = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    spec = importlib.util.spec_from_file_location("parity_weights", folder / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights, digest = {}, hashlib.sha256()
    for key, shape, dtype in info["state_dict"]:
        if key in info["kept"]:
            weights[key] = np.zeros(shape, dtype)  # counters of batches
            continue
        weights[key] = np.asarray(module.make(key, shape, info["seed"]), np.float32)
        digest.update(weights[key].tobytes())
    assert digest.hexdigest() == info["weights_sha256"]
    return Case(info, arrays, weights)


def nchw(x) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)
