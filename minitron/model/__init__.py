"""What a model is, without its weights: families, sizes, axes, importance, plans.

Names, shapes and indices alone; opens no file of weights.
"""
