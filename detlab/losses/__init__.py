"""Loss functions, one family a file; they return unreduced float32 values."""
