"""Loss functions, one family per file; they return unreduced float32 values."""
