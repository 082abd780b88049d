"""Text that people bring: its files, rows, passages and token ids. Knows no model."""
