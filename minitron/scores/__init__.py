"""What matters in a model: one pass of text through its layers, aggregated to scores.

Makes an `Importance` (minitron/model/importance.py); does not know what is cut by it.
"""
