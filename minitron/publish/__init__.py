"""Publishing on the Hub: what of a folder is published, the upload, and Spaces.

Knows repositories and commits; does not know how a model was made.
"""
