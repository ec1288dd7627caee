"""State dicts as safetensors files, through their own library."""

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

    Memory: the whole file once more.

    Args:
      path: the file, replaced if it exists, once all is written.
      tensors: by name, of any shape and strides; the format orders them by type and name.
      class_names: kept in the metadata as a JSON list, where `readers.safetensors_file` finds it.
    Raises:
      OSError: the file cannot be written; what was there before is unchanged.
    """
    # One entry at most: the library writes several in a random order.
    metadata = {"class_names": json.dumps(list(class_names))} if class_names else None
    # The library writes bytes from the first one on, whatever the strides.
    dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    data = safetensors_numpy.save(dense, metadata)  # save_file has errors and modes of its own
    with whole.replacing(path) as part:
        part.write_bytes(data)
