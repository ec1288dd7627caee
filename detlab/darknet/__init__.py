"""Networks of darknet: the text format in which they are written, and the standard ones."""
