"""Importance scores: by activations on text, by weights, or at random.

Makes an `Importance` (minitron/model/importance.py); `plan` decides what is cut because of it.
"""
