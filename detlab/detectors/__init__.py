"""One detector a file: its module, its targets, its loss and its candidates."""
