"""Readers and writers of other formats: `.nemo` files, SentencePiece models, config maps."""
