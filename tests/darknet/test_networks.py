"""The standard networks equal the published ones, and changes to a network."""

import pytest

from detlab.darknet import cfg as darknet_cfg
from detlab.darknet import networks as darknet_networks

# Keys of a [yolo] that the published cfgs in the shared folder keep: they are for inference.
KEPT = ("mask", "anchors", "classes", "num", "scale_x_y", "nms_kind", "beta_nms")


@pytest.mark.parametrize("name", darknet_networks.STANDARD)
def test_standard_networks_equal_the_published_ones_section_by_section(name, shared_dir):
    ours = darknet_cfg.plain(darknet_networks.resolve(name)).layers
    published = darknet_cfg.read(shared_dir / "parity" / "yolo" / f"{name}.cfg")
    theirs = darknet_cfg.plain(published).layers
    assert len(ours) == len(theirs)
    for number, (a, b) in enumerate(zip(ours, theirs)):
        if isinstance(a, darknet_cfg.Yolo):
            assert [getattr(a, k) for k in KEPT] == [getattr(b, k) for k in KEPT], number
        else:
            assert a == b, number


@pytest.mark.parametrize("name", darknet_networks.STANDARD)
def test_a_network_for_other_classes_or_with_fewer_channels_fits_together(name):
    network = darknet_networks.resolve(name)
    small = darknet_networks.with_classes(darknet_networks.scaled(network, 0.25), 3)
    shapes = darknet_cfg.shapes(small)
    for number in darknet_networks.heads(small):
        assert shapes[number].channels == 3 * (5 + 3)
    widths = [x.filters for x in small.layers if isinstance(x, darknet_cfg.Convolutional)]
    assert all(width % 8 == 0 for width in widths)
    assert darknet_networks.scaled(network, 1.0) is network
    same = darknet_networks.with_classes(network, 80)
    assert darknet_cfg.format(same) == darknet_cfg.format(network), "not a character changes"


def test_what_is_no_network_of_a_detector_is_one_sentence():
    with pytest.raises(
        darknet_cfg.CfgError, match="is 'yolov5'; it must be the text .* or one of yolov3"
    ):
        darknet_networks.resolve("yolov5")
    conv = "[net]\nwidth=32\nheight=32\nchannels=3\n[convolutional]\nfilters=8\n"
    with pytest.raises(darknet_cfg.CfgError, match="has no .yolo. section, which a detector needs"):
        darknet_networks.heads(darknet_networks.resolve(conv))
    grouped = conv + "[convolutional]\nfilters=8\ngroups=8\n[convolutional]\nfilters=18\n"
    grouped += "[yolo]\nanchors=1,1,2,2,3,3\nnum=3\nclasses=1\n"
    with pytest.raises(darknet_cfg.CfgError, match="layer 1 has groups=8"):
        darknet_networks.scaled(darknet_networks.resolve(grouped), 0.5)
