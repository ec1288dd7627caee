"""Evaluation on the host: COCO and PASCAL VOC average precision."""
