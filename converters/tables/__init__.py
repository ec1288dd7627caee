"""Conversion tables: one module per source and model, data only (see `converters.mapping`)."""
