"""Splits sets of losses as PAA's reference does, with scikit-learn: writes paa_splits.npz.

    pip install scikit-learn && python tests/data/sklearn/record_paa.py

The reference fits scikit-learn's GaussianMixture to the sorted losses of an object, in float32; the
file has the positives of each set as bits, from the lowest loss up, and the same in float64.
"""

import pathlib
import warnings

import numpy as np

SETS, PLACES = 1000, 45


def losses(seed: int = 0) -> list[np.ndarray]:
    """`SETS` sets of 2 to `PLACES` losses, float32 and sorted, from five distributions in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(SETS):
        num = int(rng.integers(2, PLACES + 1))
        kind = i % 5
        if kind == 0:
            values = rng.uniform(0.1, 4, num)
        elif kind == 1:
            few = max(1, num // 4)
            values = np.append(rng.normal(0.5, 0.15, few), rng.normal(2.0, 0.4, num - few))
        elif kind == 2:
            values = rng.gamma(2.0, 0.6, num)
        elif kind == 3:
            values = rng.normal(1.5, rng.uniform(0.01, 0.1), num)
        else:
            some = int(rng.integers(1, num))
            values = np.append(rng.normal(0.8, 0.3, some), rng.normal(1.3, 0.3, num - some))
        found.append(np.sort(np.abs(values).astype(np.float32)))
    return found


def split(values: np.ndarray, dtype: type) -> np.ndarray:
    """Which of the sorted losses are positive: [PLACES] bool."""
    from sklearn import mixture

    values = values.astype(dtype).reshape(-1, 1)
    fitted = mixture.GaussianMixture(
        2,
        weights_init=[0.5, 0.5],
        means_init=[values.min(0), values.max(0)],
        precisions_init=np.ones((2, 1), dtype),
        covariance_type="diag",
    ).fit(values)
    low = np.flatnonzero(fitted.predict(values) == 0)
    positive = np.zeros(PLACES, bool)
    if len(low):
        positive[low[: 1 + np.argmax(fitted.score_samples(values)[low])]] = True
    return positive


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # fits of a few equal losses
    found = {
        name: np.array([split(values, getattr(np, name)) for values in losses()])
        for name in ("float32", "float64")
    }
    packed = {name: np.packbits(values, axis=1) for name, values in found.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name("paa_splits.npz"), **packed)
    differ = int((found["float32"] != found["float64"]).any(1).sum())
    print(f"{SETS} sets; float32 and float64 differ in {differ}")
