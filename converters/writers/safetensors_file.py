"""Writes state dicts as safetensors files, with the format's own library."""

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors import numpy as safetensors_numpy

from detlab.converters.writers import whole


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes a safetensors file; the same tensors give the same bytes.

    Needs extra memory for the whole file.

    Args:
      path: the file; one that exists is replaced once everything is written.
      tensors: by name, of any shape and strides; the format orders them by type and name.
      class_names: stored in the metadata as a JSON list, which `readers.safetensors_file` reads.
    Raises:
      OSError: the file cannot be written; one that exists is unchanged.
    """
    # One entry at most: the library writes several in a random order.
    metadata = {"class_names": json.dumps(list(class_names))} if class_names else None
    # The library ignores strides.
    dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    data = safetensors_numpy.save(dense, metadata)  # save_file differs in errors and file modes
    with whole.replacing(path) as part:
        part.write_bytes(data)
