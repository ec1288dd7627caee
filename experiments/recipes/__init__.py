"""How the authors of a family of detectors train it; all experiments of the family share this."""
