"""torchvision's ResNet backbones, which mmdet's rules can read."""

from detlab.converters.families import mmdet

FAMILY = mmdet.FAMILY._replace(name="torchvision")
