"""How the authors of a family of detectors train, for all its experiments."""
