"""A writer of PyTorch's ZIP format, so that the tests can make files without PyTorch."""

import pickle
import struct
import zipfile

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Pth:
    """Pieces of a pickle, protocol 2, and the archive around it."""

    def __init__(self):
        self.storages = {}

    @staticmethod
    def text(value):
        data = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(data)) + data

    @staticmethod
    def integer(value):
        return pickle.dumps(value, 2)[2:-1]

    def tensor(self, array, num_elements=None, size=None, strides=None, key=None):
        """Opcodes that push one tensor; what they claim about it can be made false."""
        array = np.ascontiguousarray(array)
        key = str(len(self.storages)) if key is None else key
        self.storages[key] = array.tobytes()
        size = array.shape if size is None else size
        elements = tuple(s // array.itemsize for s in array.strides)
        strides = elements if strides is None else strides
        storage = (
            pickle.MARK
            + self.text("storage")
            + f"ctorch\n{STORAGES[array.dtype.name]}\n".encode()
            + self.text(key)
            + self.text("cpu")
            + self.integer(array.size if num_elements is None else num_elements)
            + pickle.TUPLE
            + pickle.BINPERSID
        )
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n"
            + pickle.MARK
            + storage
            + self.integer(0)
            + self.integer(tuple(size))
            + self.integer(tuple(strides))
            + pickle.NEWFALSE
            + b"ccollections\nOrderedDict\n)R"
            + pickle.TUPLE
            + pickle.REDUCE
        )

    def dict(self, entries):
        """Opcodes that push a dict of text -> opcodes."""
        items = b"".join(self.text(key) + value for key, value in entries.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS

    def write(self, path, program, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickle.PROTO + b"\x02" + program + pickle.STOP)
            for key, data in self.storages.items():
                archive.writestr(f"archive/data/{key}", data)
        return path

    def write_state_dict(self, path, tensors, **meta):
        """A state dict, or a checkpoint with `meta` in it (values that pickle by themselves)."""
        program = self.dict({name: self.tensor(array) for name, array in tensors.items()})
        if meta:
            entries = {key: self.integer(value) for key, value in meta.items()}
            program = self.dict({**entries, "state_dict": program})
        return self.write(path, program)
