"""Programs that analyse data and detectors: `python -m detlab.tools.<name>`."""
