"""Text that people bring: files and their rows, what of a row is text, passages, token ids.

Knows no model; `minitron.text.corpus` packs what is read here.
"""
