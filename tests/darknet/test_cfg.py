"""Cfg texts are parsed, written back character by character, and rejected with a line number."""

import time
import tracemalloc

import numpy as np
import pytest

from detlab.darknet import cfg as darknet_cfg

# Every section, group and way to name a layer; the shapes below are worked out by hand.
TEXT = """\
# A small network
[net]
width = 32
height=32
channels=3
learning_rate=.002\t# a comment
steps=400,450
tracking=7

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish

[convolutional]
batch_normalize=1
groups=8
filters=8
size=3
padding=1
activation=leaky

[conv]
filters=8
activation=linear

[dropout]
probability=.15

[shortcut]
from=-4
activation=linear

[maxpool]
size=2
stride=2

[maxpool]
size=3
stride=1

[route]
layers = -1, -2

[convolutional]
filters=14
activation=linear

[yolo]
mask = 0,1
anchors = 4,6,  8.5,9,  20,16
classes=2
num=3
scale_x_y = 1.05
iou_loss=ciou
nms_kind=greedynms
random=1

; the other scale
[route]
layers=-3

[route]
layers=-1
groups=2
group_id=1

[upsample]
stride=2

[route]
layers=-1,4

[convolutional]
filters=7

[yolo]
mask=2
anchors=4,6,8.5,9,20,16
classes=2
num=3
"""
SHAPES = [
    (8, 16, 16),  # 0 convolutional
    (8, 16, 16),
    (8, 16, 16),
    (8, 16, 16),  # 3 dropout
    (8, 16, 16),
    (8, 8, 8),  # 5 maxpool, stride 2
    (8, 8, 8),
    (16, 8, 8),  # 7 route
    (14, 8, 8),
    (14, 8, 8),  # 9 yolo
    (16, 8, 8),
    (8, 8, 8),  # 11 route, second half
    (8, 16, 16),
    (16, 16, 16),  # 13 route
    (7, 16, 16),
    (7, 16, 16),
]
CFGS = ["yolov3", "yolov3-tiny", "yolov4", "yolov4-tiny", "yolo-fastest-1.1"]
MORE_CFGS = ["yolov3-spp", "yolov3-tiny-prn", "csresnext50-panet-spp", "mixed"]
MORE_CFGS += ["yolov4-csp", "yolov4x-mish", "yolov7-tiny"]
MORE_CFGS += ["yolov2", "yolov2-tiny", "gaussian-yolov3"]


def changed(*changes):
    """TEXT with the first occurrence of each old string replaced."""
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def refused(text):
    """The message with which the parser or the graph rejects a text."""
    with pytest.raises(darknet_cfg.CfgError) as info:
        darknet_cfg.shapes(darknet_cfg.parse(text, "small.cfg"))
    message = str(info.value)
    assert message.startswith("small.cfg") and message.endswith(".") and "\n" not in message
    return message


# ---- Reading. ----


def test_values_have_types_and_missing_ones_have_darknets_defaults():
    net, layers = darknet_cfg.parse(TEXT)[1:3]
    assert (net.width, net.learning_rate, net.steps) == (32, 0.002, (400, 450))
    assert (net.batch, net.policy, net.mosaic) == (1, "constant", False)
    assert net.other == (("tracking", "7"),)
    first, grouped, bare = layers[:3]
    assert (first.filters, first.size, first.stride, first.activation) == (8, 3, 2, "mish")
    assert first.batch_normalize is True and first.groups == 1
    assert (grouped.groups, grouped.pad, grouped.padding) == (8, False, 1)
    assert (bare.size, bare.stride, bare.batch_normalize) == (1, 1, False)
    assert layers[3].probability == 0.15
    assert layers[14].activation == "logistic"
    yolo = layers[9]
    assert yolo.anchors == ((4, 6), (8.5, 9), (20, 16)) and yolo.mask == (0, 1)
    assert (yolo.scale_x_y, yolo.iou_loss, yolo.nms_kind, yolo.random) == (
        1.05,
        "ciou",
        "greedynms",
        1,
    )
    assert (yolo.ignore_thresh, yolo.truth_thresh, yolo.iou_thresh) == (0.5, 1, 1)
    assert (yolo.iou_normalizer, yolo.cls_normalizer, yolo.beta_nms) == (0.75, 1, 0.6)


def test_pad_means_half_the_kernel_and_outranks_padding():
    layer = darknet_cfg.Convolutional
    assert layer(size=5, pad=True, padding=9).border == 2
    assert layer(size=5, padding=1).border == 1
    assert layer(size=1, pad=True).border == 0


def test_named_layers_become_absolute_numbers():
    layers = darknet_cfg.parse(TEXT).layers
    found = {i: layer.layers for i, layer in enumerate(layers) if hasattr(layer, "layers")}
    assert found == {4: (0,), 7: (6, 5), 10: (7,), 11: (10,), 13: (12, 4)}
    assert (layers[11].groups, layers[11].group_id) == (2, 1)


def test_pool_pads_by_one_less_than_its_size_and_is_as_large_as_its_stride_unless_told():
    text = (
        "[net]\nwidth=9\nheight=9\nchannels=1\n[max]\nstride=3\n[max]\nsize=5\n[max]\npadding=0\n"
    )
    pools = darknet_cfg.parse(text).layers
    assert [(p.size, p.stride, p.padding) for p in pools] == [(3, 3, 2), (5, 1, 4), (1, 1, 0)]


def test_yolo_without_mask_has_all_anchors():
    text = changed(("mask=2\n", ""), ("filters=7\n", "filters=21\n"))
    network = darknet_cfg.parse(text)
    assert network.layers[-1].mask == (0, 1, 2)
    darknet_cfg.shapes(network)


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("filters=8", "filters=8", ""),
        ("activation=mish", "activaton=mish", "activaton of line 16 (activation?)"),
        ("activation=mish", "Activation=mish", "Activation of line 16 (activation?)"),
        ("batch_normalize=1", "batchnormalize=1", "batchnormalize of line 11 (batch_normalize?)"),
        ("activation=mish", "activation=mish\nactivaton=leaky", ""),  # known where it counts
        ("activation=mish", "activation=mish\nsomething=1", ""),
    ],
)
def test_keys_that_look_misspelled_are_told(old, new, told):
    network = darknet_cfg.parse(TEXT.replace(old, new, 1), "small.cfg")
    start = "small.cfg has keys that darknet does not know, without effect: "
    assert darknet_cfg.misspelled(network) == (start + told if told else "")


def test_anchors_may_end_with_a_comma():
    text = changed(("20,16", "20,16,"))
    network = darknet_cfg.parse(text)
    assert network.layers[9].anchors == ((4, 6), (8.5, 9), (20, 16))
    assert darknet_cfg.format(network) == text


def test_shapes_of_every_kind_of_layer():
    assert list(darknet_cfg.shapes(darknet_cfg.parse(TEXT))) == SHAPES


def test_shapes_follow_the_image_where_it_is_not_the_nets_size():
    shapes = darknet_cfg.shapes(darknet_cfg.parse(TEXT), height=64, width=96)
    assert list(shapes) == [(c, 2 * h, 3 * w) for c, h, w in SHAPES]


def test_shortcuts_of_unequal_depth_have_the_depth_of_the_layer_before():
    text = "[net]\nwidth=8\nheight=8\nchannels=3\n[conv]\nfilters=4\n[conv]\nfilters=6\n"
    network = darknet_cfg.parse(text + "[shortcut]\nfrom=0\n[conv]\n[shortcut]\nfrom=-2\n")
    assert [shape.channels for shape in darknet_cfg.shapes(network)] == [4, 6, 6, 1, 1]


def test_share_index_counts_from_the_start_or_back_and_leads_to_the_layer_that_has_weights():
    text = "[net]\nwidth=8\nheight=8\nchannels=4\n[conv]\nfilters=4\n"
    text += "[conv]\nfilters=4\nshare_index=0\n[conv]\nfilters=4\nshare_index=-1\n"
    network = darknet_cfg.parse(text)
    assert [layer.share_index for layer in network.layers] == [None, 0, 1]
    assert [darknet_cfg.owner(network, i) for i in range(3)] == [0, 0, 0]
    assert darknet_cfg.format(network) == text
    darknet_cfg.shapes(network)


# ---- Writing. ----


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_text_comes_back_letter_by_letter(newline):
    text = TEXT.replace("\n", newline)
    network = darknet_cfg.parse(text)
    assert darknet_cfg.format(network) == text
    assert darknet_cfg.parse(darknet_cfg.format(network)) == network


def test_network_without_its_text_is_written_in_full():
    network = darknet_cfg.plain(darknet_cfg.parse(TEXT))
    text = darknet_cfg.format(network)
    assert "#" not in text and text != TEXT
    assert darknet_cfg.plain(darknet_cfg.parse(text)) == network


def test_plain_networks_are_equal_where_only_order_spelling_and_comments_differ():
    other = changed(
        ("filters=8\nsize=3\nstride=2\n", "stride = 2\n# why\nsize=3\nfilters=8\n"),
        ("probability=.15", "probability=0.150"),
        ("layers=-1,4", "layers=12,-9"),
        ("[conv]", "[convolutional]"),
    )
    first, second = darknet_cfg.parse(TEXT), darknet_cfg.parse(other)
    assert first != second
    assert darknet_cfg.plain(first) == darknet_cfg.plain(second)
    third = darknet_cfg.parse(changed(("classes=2\n", "classes=3\n")))
    assert darknet_cfg.plain(first) != darknet_cfg.plain(third)


def test_new_number_of_classes_changes_only_its_lines():
    network = darknet_cfg.parse(TEXT)
    layers = list(network.layers)
    for i in (9, 15):
        anchors = len(layers[i].mask)
        layers[i] = layers[i]._replace(classes=4)
        layers[i - 1] = layers[i - 1]._replace(filters=anchors * 9)
    changed_network = network._replace(layers=tuple(layers))
    text = darknet_cfg.format(changed_network)
    differing = [(a, b) for a, b in zip(TEXT.split("\n"), text.split("\n"), strict=True) if a != b]
    classes = ("classes=2", "classes=4")
    assert differing == [
        ("filters=14", "filters=18"),
        classes,
        ("filters=7", "filters=9"),
        classes,
    ]
    assert darknet_cfg.plain(darknet_cfg.parse(text)) == darknet_cfg.plain(changed_network)


def test_added_values_stand_behind_the_others_and_dependent_defaults_stay_what_they_were():
    network = darknet_cfg.parse(TEXT)
    layers = list(network.layers)
    layers[5] = layers[5]._replace(stride=1, padding=0)
    layers[6] = darknet_cfg.MaxPool(size=1, padding=0, stride=2)
    layers[9] = layers[9]._replace(max_boxes=90, other=(("show_details", "0"),))
    network = network._replace(net=network.net._replace(other=()), layers=tuple(layers))
    text = darknet_cfg.format(network)
    assert "[maxpool]\nsize=2\nstride=1\npadding=0\n\n[maxpool]\nstride=2\nsize=1\n\n" in text
    assert "random=1\nmax=90\nshow_details=0\n\n; the other scale" in text
    assert "tracking" not in text
    assert darknet_cfg.plain(darknet_cfg.parse(text)) == darknet_cfg.plain(network)


def test_numbers_of_layers_are_written_anew_where_layers_have_been_taken_away():
    text = "[net]\nwidth=8\nheight=8\nchannels=1\n" + "[conv]\nfilters=2\n" * 3
    network = darknet_cfg.parse(text + "[shortcut]\nfrom=-3\n")
    layers = (network.layers[0], network.layers[3]._replace(layers=(0,)))
    text = darknet_cfg.format(network._replace(layers=layers))
    assert text.endswith("[shortcut]\nfrom=0\n")
    assert darknet_cfg.parse(text).layers[1].layers == (0,)


# ---- The published networks. ----


@pytest.mark.parametrize("name", CFGS)
def test_published_cfg_is_read_written_and_has_the_published_heads(shared_dir, name):
    path = shared_dir / "parity" / "yolo" / f"{name}.cfg"
    network = darknet_cfg.read(path)
    text = path.read_text()
    assert darknet_cfg.format(network) == text
    plain = darknet_cfg.plain(network)
    assert darknet_cfg.plain(darknet_cfg.parse(darknet_cfg.format(plain))) == plain
    assert all(section.other == () for section in (network.net, *network.layers))
    heads = [
        (shape.channels, network.net.height // shape.height)
        for layer, shape in zip(network.layers, darknet_cfg.shapes(network))
        if isinstance(layer, darknet_cfg.Yolo)
    ]
    strides = {"yolov3": [32, 16, 8], "yolov4": [8, 16, 32]}.get(name, [32, 16])
    assert heads == [(255, stride) for stride in strides]


@pytest.mark.parametrize("name", MORE_CFGS)
def test_further_cfgs_are_read_and_written(shared_dir, name):
    path = shared_dir / "parity" / "yolo" / f"{name}.cfg"
    network = darknet_cfg.read(path)
    assert darknet_cfg.format(network) == path.read_text()
    plain = darknet_cfg.plain(network)
    assert darknet_cfg.plain(darknet_cfg.parse(darknet_cfg.format(plain))) == plain
    darknet_cfg.shapes(network)


def test_training_cfg_says_the_same_as_the_one_reduced_to_inference(shared_dir):
    trained = darknet_cfg.read(shared_dir / "weights" / "yolo-fastest-1.1.cfg")
    reduced = darknet_cfg.read(shared_dir / "parity" / "yolo" / "yolo-fastest-1.1.cfg")
    assert (
        darknet_cfg.format(trained) == (shared_dir / "weights" / "yolo-fastest-1.1.cfg").read_text()
    )
    assert (trained.net.burn_in, trained.net.scales) == (4000, (0.1, 0.1))
    assert all(section.other == () for section in (trained.net, *trained.layers))
    kinds = [type(layer) for layer in trained.layers]
    assert kinds == [type(layer) for layer in reduced.layers]
    for layer, other in zip(darknet_cfg.plain(trained).layers, darknet_cfg.plain(reduced).layers):
        if isinstance(layer, darknet_cfg.Convolutional):
            assert layer._replace(pad=other.pad) == other and layer.border == other.border
        elif not isinstance(layer, (darknet_cfg.Yolo, darknet_cfg.Dropout)):
            assert layer == other


# ---- Keys that are given again: darknet takes the first value (option_find). ----


DOUBLED = [  # old, new, what the section has then, what is told
    (
        "height=32",
        "height=32\nbatch=1\nbatch=64",
        ("net", "batch", 1),
        "1 value again; the first one counts, as in darknet: batch='1' of line 5, not '64' of"
        " line 6",
    ),
    (
        "steps=400,450",
        "steps=400,450\nsteps=9\nwidth=64",
        ("net", "steps", (400, 450)),
        "2 values again; the first one counts, as in darknet: steps='400,450' of line 7, not '9'"
        " of line 8, width='32' of line 3, not '64' of line 9",
    ),
    ("size=3", "size=3\nsize=what", (0, "size", 3), "size='3' of line 13, not 'what' of line 14"),
    (
        "activation=mish",
        "activation=mish\nstride=1",
        (0, "stride", 2),
        "stride='2' of line 14, not '1' of line 17",
    ),
    (
        "num=3",
        "new_coords=0\nnew_coords=1\nnum=3",
        (9, "num", 3),
        "new_coords='0' of line 56, not '1' of line 57",
    ),
    ("tracking=7", "tracking=7\ntracking=8", ("net", "other", (("tracking", "7"),)), "'8' of line"),
]


@pytest.mark.parametrize("old, new, expected, told", DOUBLED)
def test_the_first_value_of_a_key_counts_and_the_other_is_told(old, new, expected, told):
    text = changed((old, new))
    network = darknet_cfg.parse(text, "small.cfg")
    number, field, value = expected
    section = network.net if number == "net" else network.layers[number]
    assert getattr(section, field) == value
    assert darknet_cfg.plain(network) == darknet_cfg.plain(darknet_cfg.parse(TEXT)) or (
        field in ("batch", "num")  # added, with their default value or beside an option
    )
    assert darknet_cfg.repeated(network).startswith("small.cfg gives ")
    assert told in darknet_cfg.repeated(network)
    assert darknet_cfg.format(network) == text, "the second value stays in the text"


def test_a_key_that_is_given_again_with_its_value_is_not_worth_a_word():
    assert darknet_cfg.repeated(darknet_cfg.parse(changed(("size=3", "size=3\nsize = 3")))) == ""
    assert darknet_cfg.repeated(darknet_cfg.parse(TEXT)) == ""


def test_only_the_value_that_counts_is_rewritten():
    network = darknet_cfg.parse(changed(("filters=14", "filters=14\nfilters=3")))
    layers = list(network.layers)
    layers[8] = layers[8]._replace(filters=20)
    layers[9] = layers[9]._replace(classes=5)
    text = darknet_cfg.format(network._replace(layers=tuple(layers)))
    assert "filters=20\nfilters=3\n" in text
    assert darknet_cfg.parse(text).layers[8].filters == 20


def test_many_values_are_counted_and_the_first_ones_named():
    again = "".join(f"k{i}=1\nk{i}=2\n" for i in range(9))
    told = darknet_cfg.repeated(darknet_cfg.parse(changed(("tracking=7\n", again)), "small.cfg"))
    assert told.startswith("small.cfg gives 9 values again") and told.endswith(", and 5 more")
    assert "k3='1'" in told and "k4" not in told


# ---- Encodings. ----


CHINESE = "中文说明"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("# A small network", "# réseau").encode("cp1252"),
        TEXT.replace("# a comment", f"# {CHINESE}").encode("gb18030"),
        TEXT.replace("# a comment", "# 日本語のコメント").encode("shift-jis"),
        TEXT.replace("; the other scale", "  ; 中文說明").encode("big5"),
        TEXT.replace("# A small network", f"# {CHINESE}").encode("utf-8-sig"),
        TEXT.replace("\n", " \t\n").encode() + b"\n\n \n",
    ],
    ids=[
        *(
            "utf-8 mark",
            "utf-16",
            "utf-16 without mark",
            "crlf and mark",
            "cr",
            "cp1252",
            "gb18030",
        ),
        *("shift-jis", "big5", "utf-8 comment", "trailing blanks"),
    ],
)
def test_marks_encodings_and_comments_never_refuse_a_file(tmp_path, data):
    path = tmp_path / "small.cfg"
    path.write_bytes(data)
    network = darknet_cfg.read(path)
    assert darknet_cfg.plain(network) == darknet_cfg.plain(darknet_cfg.parse(TEXT))
    darknet_cfg.format(network).encode()  # can be stored and written back


def test_foreign_bytes_of_comments_are_escaped(tmp_path):
    path = tmp_path / "small.cfg"
    path.write_bytes(TEXT.replace("# A small network", "# réseau").encode("cp1252"))
    assert darknet_cfg.format(darknet_cfg.read(path)).startswith("# r\\xe9seau\n[net]\n")


def test_foreign_bytes_outside_comments_are_refused_with_the_line(tmp_path):
    path = tmp_path / "small.cfg"
    path.write_bytes(TEXT.replace("tracking=7", "tracking=é").encode("latin-1"))
    with pytest.raises(darknet_cfg.CfgError) as info:
        darknet_cfg.read(path)
    assert str(info.value) == (
        f"{path} is not a darknet cfg: it is not UTF-8 text (byte 0xE9 in line 8); save it as"
        " UTF-8."
    )


# ---- Errors. ----


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "[dropout]",
            "[reorgs]",
            "small.cfg, line 30: unknown section '[reorgs]'; use one of [net],",
        ),
        ("[dropout]", "[dropout", "line 30: unknown section '[dropout'"),
        (
            "stride=2",
            "stride=2x",
            "line 14: layer 0 [convolutional] has stride='2x'; it must be an",
        ),
        ("stride=2", "stride=0", "it must be an integer of at least 1"),
        ("filters=8", "filters=8.5", "has filters='8.5'"),
        ("filters=8", "filters=" + "9" * 5000, "an integer"),
        ("filters=8", "filters=٣", "an integer"),
        ("=.15", "=nan", "must be a number"),
        ("=.15", "=1e999", "must be a number"),
        ("mish", "mich", "one of linear, leaky, mish, relu, logistic, swish"),
        ("batch_normalize=1", "batch_normalize=2", "must be 0 or 1"),
        ("=.002", "=", "line 6: [net] has 'learning_rate=', which is not key=value"),
        ("size=3", "size", "line 13: layer 0 [convolutional] has 'size', which is not key=value"),
        ("mask = 0,1", "mask = 0,,1", "a comma-separated list, each item an integer of at least 0"),
        ("mask = 0,1", "mask = 0,1,", "a comma-separated list, each item an integer"),
        ("mask = 0,1", "mask = 0,3", "has mask=0,3 but only 3 anchors"),
        ("num=3", "num=4", "has num=4 but 3 pairs of anchors"),
        ("8.5,9,", "8.5,", "pairs of numbers above 0"),
        ("8.5,9,", "8.5,0,", "pairs of numbers above 0"),
        ("anchors = ", "anchor = ", "layer 9 [yolo] has no anchors"),
        ("layers = -1", "layer = -1", "layer 7 [route] has no layers"),
        ("from=-4", "form=-4", "layer 4 [shortcut] has no from"),
        ("width = 32", "with = 32", "line 2: [net] has no width"),
        ("from=-4", "from=-5", "each item an integer of at least -4"),
        ("from=-4", "from=4", "must be numbers of layers before this one, layer 4"),
        ("layers=-1,4", "layers=-1,14", "numbers of layers before this one, layer 13"),
        ("[dropout]", "[net]\nwidth=1\nheight=1\nchannels=1", "[net] must be the first section"),
        ("[net]", "[dropout]", "[net] must be the first section"),
        ("groups=8", "sway=1", "has sway='1', an option that is not implemented"),
        ("groups=8", "xnor=1", "line 20: layer 1 [convolutional] has xnor='1', an option that"),
        ("groups=8", "share_index=1", "must be numbers of layers before this one, layer 1"),
        ("groups=8", "share_index=-1,0", "it must be one number of a layer"),
        *(
            (
                "[dropout]",
                f"[{name}]",
                f"small.cfg, line 30: layer 3 [{name}] is a section of darknet that is not"
                " implemented.",
            )
            for name in ("crnn", "contrastive", "detection", "lstm")
        ),
        ("[dropout]", "[sam]\nfrom=-1,-2", "it must be one number of a layer"),
        ("[dropout]", "[scale_channels]", "layer 3 [scale_channels] has no from"),
        ("from=-4\n", "from=-4\nweights_type=each\n", "none, per_feature, per_layer, per_channel"),
        ("nms_kind=greedynms", "embedding_layer=3", "an option that is not implemented"),
        ("nms_kind=greedynms", "map=coco.map", "has map='coco.map', an option that is not"),
        *(
            ("[yolo]", f"[Gaussian_yolo]\n{key}", f"[Gaussian_yolo] has {said}, an option that is")
            for key, said in (
                ("objectness_smooth=1", "objectness_smooth='1'"),
                ("counters_per_class=1,2", "counters_per_class='1,2'"),
                ("yolo_point=left_top", "yolo_point='left_top'"),
            )
        ),
        ("# A small network", "width=3", "line 1: not a darknet cfg, which begins with [net]"),
    ],
)
def test_malformed_text_is_refused_with_line_section_and_key(old, new, message):
    assert message in refused(changed((old, new)))


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "groups=8",
            "groups=3",
            "line 18: layer 1 [convolutional] has groups=3, which must divide its 8 ",
        ),
        ("from=-4\n", "from=0\n[max]\nstride=2\n[shortcut]\nfrom=0\n", "layer 6 [shortcut] adds"),
        ("[dropout]", "[max]\nstride=2\n[sam]\nfrom=0", "layer 4 [sam] multiplies layer 0, which"),
        (
            "[dropout]",
            "[scale_channels]\nfrom=0",
            "layer 3 [scale_channels] scales layer 0, which outputs 8 channels of 16x16, and needs"
            " 8 channels of 1x1, but the layer before it outputs 8 channels of 16x16",
        ),
        ("[dropout]", "[reorg3d]\nstride=3", "layer 3 [reorg3d] has stride=3, which must divide 8"),
        (
            "filters=14",
            "filters=14\nshare_index=0\nsize=3",
            "layer 8 [convolutional] has filters=14, but shares the weights of layer 0, which",
        ),
        (
            "[conv]\n",
            "[conv]\nshare_index=0\nsize=3\nbatch_normalize=1\n",
            "line 26: layer 2 [convolutional] has 8 input channels, but shares the weights of layer"
            " 0, which has 3",
        ),
        ("filters=14", "filters=14\nshare_index=5", "share_index=5, which is not an earlier [conv"),
        (
            "layers = -1, -2",
            "layers = -1, 0",
            "joins layer 6, which outputs 8 channels of 8x8, with",
        ),
        (
            "groups=2",
            "groups=3",
            "line 66: layer 11 [route] has groups=3, which must divide the 16",
        ),
        ("group_id=1", "group_id=2", "has group_id=2; it must be below groups=2"),
        ("padding=1", "dilation=2", "layer 1 [convolutional] has dilation=2, for which darknet"),
        ("filters=14", "filters=15", "layer 9 [yolo] needs 14 channels (2 anchors of 5 + 2"),
        (
            "height=32",
            "height=1",
            "layer 5 [maxpool] outputs 8 channels of 0x8, which is too small",
        ),
        ("[upsample]\nstride=2", "[upsample]\nstride=999999", "too small or too large"),
    ],
)
def test_layers_that_do_not_fit_are_refused_with_their_number(old, new, message):
    text = changed((old, new))
    if "[maxpool]" in message:  # with padding of size - 1 a pool's output is never empty
        text = text.replace("stride=2\n\n[maxpool]", "stride=2\npadding=0\n\n[maxpool]")
    assert message in refused(text)


def test_network_made_by_hand_is_checked_too():
    net = darknet_cfg.Net(8, 8, 3)
    network = darknet_cfg.Network("mine", net, (darknet_cfg.Route(layers=(1,)),))
    with pytest.raises(darknet_cfg.CfgError, match=r"mine: layer 0 \[route\] takes layers 1, not"):
        darknet_cfg.shapes(network)


def test_options_that_are_spelt_out_but_change_nothing_are_kept():
    text = changed(("groups=8\n", "sway=0\nantialiasing=0\nstopbackward=800\n"))
    layer = darknet_cfg.parse(text).layers[1]
    assert dict(layer.other) == {"sway": "0", "antialiasing": "0", "stopbackward": "800"}


def test_files_that_are_no_cfg_are_refused_by_name(tmp_path):
    path = tmp_path / "net.cfg"

    def message():
        with pytest.raises(darknet_cfg.CfgError) as info:
            darknet_cfg.read(path)
        assert str(info.value).startswith(str(path))
        return str(info.value)

    assert "No such file" in message()
    for data, words in [
        (b"", "empty"),
        (b" \n# nothing\n", "empty"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8 text"),
        (b"<!DOCTYPE html><html>404", "not a darknet cfg, which begins with [net]"),
        (b"PK\x03\x04\x00", "not a darknet cfg"),
        (b"[net]\nwidth=1\nheight=1\nchannels=1\n", "no layers after [net]"),
        (b"[net]\n" + b"#" * (1 << 20), "too large for a darknet cfg"),
        (TEXT.encode()[:23], "[net] has no width"),
    ]:
        path.write_bytes(data)
        assert words in message()
    path.unlink()
    path.mkdir()
    assert "directory" in message()


@pytest.fixture
def peak_memory():
    """`peak_memory()` -> the most bytes that Python and NumPy have held since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def mutated(text, rng):
    """The text with lines or characters removed, doubled, swapped or replaced by a cfg's."""
    spare = "0 -1 1 2 9 999999999 -999999999 1e99 nan = , # ; [ ] [net] [route] [conv] 8,8 \n \0 é"
    spare = [*spare.split(" "), "9" * 5000, "-1," * 500]
    lines = text.split("\n")
    for _ in range(rng.integers(1, 4)):
        at, other = rng.integers(len(lines), size=2)
        line = lines[at]
        column = int(rng.integers(len(line) + 1))
        word = spare[rng.integers(len(spare))]
        match rng.integers(6):
            case 0:
                lines[at] = line[:column] + word + line[column + 1 :]
            case 1:
                lines[at] = line.partition("=")[0] + "=" + word
            case 2:
                lines = [*lines[:at], *lines[at + 1 :]] or [""]
            case 3:
                lines.insert(at, lines[other])
            case 4:
                lines[at] = lines[other]
            case 5:
                lines = lines[: max(1, int(at))]
    return "\n".join(lines)


@pytest.mark.slow
def test_mutated_texts_raise_nothing_but_a_cfg_error_and_need_little_time_and_memory(
    tmp_path, peak_memory
):
    seed, rounds, refusals = 31, 2400, 0
    rng = np.random.default_rng(seed)
    path = tmp_path / "mutated.cfg"
    start = time.monotonic()
    for i in range(rounds):
        text = mutated(TEXT, rng)
        try:
            if i % 4 == 0:  # as bytes, one of them wrong
                data = bytearray(text.encode())
                data[rng.integers(len(data))] = rng.integers(256)
                path.write_bytes(data)
                network = darknet_cfg.read(path)
            else:
                network = darknet_cfg.parse(text)
                assert darknet_cfg.format(network) == text
            darknet_cfg.shapes(network)
        except darknet_cfg.CfgError as error:
            refusals += 1
            assert len(str(error)) < 1000 and "\n" not in str(error), f"seed {seed}, round {i}"
        else:
            plain = darknet_cfg.plain(network)
            assert darknet_cfg.plain(darknet_cfg.parse(darknet_cfg.format(plain))) == plain
    seconds = time.monotonic() - start
    assert 0.5 * rounds < refusals < 0.98 * rounds, f"seed {seed}: too harmless or too fatal"
    assert seconds < 60  # for all; about 5 on one core
    assert peak_memory() < 16 << 20  # bytes


@pytest.mark.parametrize(
    "text",
    [
        "[upsample]\nstride=999999999\n" * 2000,
        "[route]\nlayers=" + "-1," * 20_000 + "\n",
        "[convolutional]\nfilters=999999999\n" * 20_000,
        "[convolutional]\n" + "".join(f"k{i}=1\n" for i in range(50_000)),
        "[yolo]\nnum=999999999\nanchors=1,1\n",
    ],
)
def test_text_that_claims_something_huge_is_dealt_with_in_no_time(text):
    start = time.monotonic()
    head = "[net]\nwidth=32\nheight=32\nchannels=3\n[dropout]\n"
    try:
        network = darknet_cfg.parse(head + text)
        assert darknet_cfg.format(network) == head + text
        darknet_cfg.shapes(network)
    except darknet_cfg.CfgError:
        pass
    assert time.monotonic() - start < 10  # seconds; about 1 on one core
