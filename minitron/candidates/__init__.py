"""Sizes to choose from: enumerated, costed, measured on this device, ranked by loss.

Makes a `SearchReport`. Scores come from `minitron.scores`, smaller models from `minitron.sources`.
"""
