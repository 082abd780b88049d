"""Tensors where they lie: in safetensors, in a pickle, cut, joined, on their way to a file.

Knows dtypes, shapes and bytes; knows no model, no axis and no Hub.
"""
