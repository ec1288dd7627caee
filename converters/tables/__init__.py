"""Conversion tables: one source and model a module, data only (see `converters.mapping`)."""
