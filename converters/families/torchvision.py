"""torchvision's backbones: ResNets as mmdet has them, and read by its rules."""

from detlab.converters.families import mmdet

FAMILY = mmdet.FAMILY._replace(name="torchvision")
