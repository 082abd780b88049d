"""Model cards: README.md of a folder, and the cards of the published family, from one template.

Knows the Hub's metadata and what a reader wants first; measures nothing.
"""
