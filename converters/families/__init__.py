"""Code bases whose weights are converted: a file each, which ends with its `FAMILY`."""

# As --source says them.  Each is a file of this folder, which `family.find` imports when it is
# needed: --help needs neither them nor jax.
NAMES = ("torchvision", "mmdet", "yolov5", "darknet")
