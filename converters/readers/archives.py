"""ZIP archives whose members are judged before they are read."""

import zipfile
from typing import BinaryIO

from detlab.converters.readers import contents


def open_zip(file: BinaryIO, size: int) -> zipfile.ZipFile:
    """Opens an archive of `size` bytes; `ReadError` if it is damaged.

    `zipfile` allocates as many bytes as a member claims to have in the file, so each claim is
    compared with the file here.  What a member claims to become when it is unpacked is for the
    caller to judge.
    """
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise contents.ReadError("a ZIP archive that is cut short or damaged") from None
    for info in archive.infolist():
        if info.compress_size > size:
            raise contents.ReadError(
                f"member {info.filename!r} claims {info.compress_size} bytes in a file of {size}"
            )
    return archive
