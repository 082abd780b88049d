"""What a written folder holds beside its weights: minitron.json, companions, the model card.

Measures nothing.
"""
