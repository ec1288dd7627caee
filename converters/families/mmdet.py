"""mmdetection's detectors, and the backbones of other code with its names.

Its configurations of caffe's ResNets are of BGR images, whose stem is flipped to RGB.
"""

import pathlib
from collections.abc import Mapping

from detlab import contract, errors
from detlab.converters import family, mapping, named, sources
from detlab.converters.readers import contents


def table(source: sources.Source, config, bgr: bool) -> mapping.Table:
    """The table of a kind of file; refuses a style of ResNet that `bgr` does not go with.

    Caffe's ResNets, with their stride on another convolution, are always of BGR images.
    """
    style = contract.field(config, "style")
    if style is not None and (style == "caffe") != bgr:
        raise errors.UserError(
            f"config.model.style is {style!r}, {'which does not go' if bgr else 'which goes'} with"
            " --bgr: the networks of caffe's style were trained on BGR images, and those alone."
        )
    return source.table(bgr)


def check_channel_order(path: pathlib.Path, file: contents.Contents, config, flags, _) -> None:
    """Mmdet stores its configuration as text, with `to_rgb=False` (2.x) or `bgr_to_rgb=False`."""
    inner = file.meta.get("meta")
    inner = inner if isinstance(inner, Mapping) else {}
    text = next((inner[key] for key in ("config", "cfg") if isinstance(inner.get(key), str)), "")
    if not flags.bgr and "to_rgb=False" in text.replace(" ", ""):
        raise errors.UserError(
            f"{path} was trained on BGR images, as the configuration in it says; convert it with"
            " --bgr, and set config.model.style, pixel_mean and pixel_std (in RGB order) to match."
        )


FAMILY = family.Family(
    "mmdet",
    named.read,
    named.write,
    named.SUFFIXES,
    table=table,
    fill_in=check_channel_order,
)
