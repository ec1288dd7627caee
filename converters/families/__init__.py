"""The code bases whose weights can be converted, one file each; each ends with its `FAMILY`."""

# The values of --source.  Each is a file in this folder that `family.find` imports when needed, so
# --help imports neither these files nor jax.
NAMES = ("torchvision", "mmdet", "yolov5", "darknet")
