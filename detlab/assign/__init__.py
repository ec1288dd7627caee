"""Which prediction learns which object: one rule a file, pure array functions on one image."""
