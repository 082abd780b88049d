"""Bytes: tensors in files, shards, the Hub's files by ranges, unfinished output, device memory.

Knows dtypes, shapes and formats; knows no model and no axis.
"""
