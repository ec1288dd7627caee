"""Drawing without a window: boxes on images, curves of a run."""
