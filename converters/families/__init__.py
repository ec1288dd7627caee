"""The code bases whose weights are converted, one file each; every file ends with its `FAMILY`."""

# As --source says them.  Each is a file of this folder, which `family.find` imports when it is
# needed: --help needs neither them nor jax.
NAMES = ("torchvision", "mmdet", "yolov5", "darknet")
