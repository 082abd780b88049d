"""Sizes to choose from: enumerated, costed, measured on this device, ranked by loss.

Makes a `SearchReport`; the cutting itself is `minitron.surgery`, the scores are `minitron.scores`.
"""
