"""The Hugging Face Hub: repositories read by ranges, folders of its format, pushing.

Knows requests, revisions and faults on the way; does not know what a model is made of.
"""
