"""ZIP archives whose members are checked before they are read."""

import zipfile
from typing import BinaryIO

from detlab.converters.readers import contents


def open_zip(file: BinaryIO, size: int) -> zipfile.ZipFile:
    """Opens an archive of `size` bytes; `ReadError` if it is damaged.

    `zipfile` allocates as many bytes as a member claims to have in the file, so each claim is
    compared with the file's size here.  The caller must check the sizes that members claim to have
    once unpacked.
    """
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise contents.ReadError(
            "a ZIP archive that is cut short or damaged; download or copy it again"
        ) from None
    for info in archive.infolist():
        if info.compress_size > size:
            raise contents.ReadError(
                f"member {info.filename!r} claims {info.compress_size} bytes in a file of {size};"
                " download or copy it again"
            )
    return archive
