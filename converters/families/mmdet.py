"""mmdetection's detectors, and backbones of other code that have its names.

Its networks with caffe's ResNets were trained on BGR images; their stem is flipped to RGB.
"""

import argparse
import pathlib
from collections.abc import Mapping

from ml_collections import config_dict

from detlab import contract, errors
from detlab.converters import family, mapping, named, sources
from detlab.converters.readers import contents


def table(source: sources.Source, config: config_dict.ConfigDict, bgr: bool) -> mapping.Table:
    """The table for a kind of file; raises if the config's style of ResNet contradicts `bgr`.

    Caffe's ResNets, whose stride is on another convolution, always take BGR images.
    """
    style = contract.field(config, "style")
    if style is not None and (style == "caffe") != bgr:
        raise errors.UserError(
            f"config.model.style is {style!r}, so {'remove' if bgr else 'add'} --bgr or change the"
            " style: networks of style caffe, and no others, were trained on BGR images."
        )
    return source.table(bgr)


def check_channel_order(
    path: pathlib.Path,
    file: contents.Contents,
    config: config_dict.ConfigDict,
    flags: argparse.Namespace,
    _: Mapping[str, str],
) -> None:
    """Requires --bgr if the stored mmdet config has `to_rgb=False` (2.x) or `bgr_to_rgb=False`."""
    inner = file.meta.get("meta")
    inner = inner if isinstance(inner, Mapping) else {}
    text = next((inner[key] for key in ("config", "cfg") if isinstance(inner.get(key), str)), "")
    if not flags.bgr and "to_rgb=False" in text.replace(" ", ""):
        raise errors.UserError(
            f"{path} was trained on BGR images, according to the mmdet config stored in it; convert"
            " it with --bgr, and set config.model.style, pixel_mean and pixel_std (in RGB order) to"
            " match."
        )


FAMILY = family.Family(
    "mmdet",
    named.read,
    named.write,
    named.SUFFIXES,
    flags=named.FLAGS,
    table=table,
    fill_in=check_channel_order,
)
