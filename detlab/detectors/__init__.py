"""One detector per file: its module, targets, loss and candidates."""
