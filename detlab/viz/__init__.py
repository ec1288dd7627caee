"""Drawing without a window: boxes on images, and curves of a run."""
