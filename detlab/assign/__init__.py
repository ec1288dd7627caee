"""Which prediction learns which object: one rule per file, pure array functions on one image."""
