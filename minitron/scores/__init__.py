"""What matters in a model: one pass of text through its layers, aggregated to scores.

Makes an `Importance` (minitron/importance_scores.py); does not know what is cut by it.
"""
