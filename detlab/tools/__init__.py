"""Programs that look at data and detectors: `python -m detlab.tools.<name>`."""
