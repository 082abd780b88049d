"""Training on text and on a teacher's predictions, with transformers' Trainer.

Makes a student from a student; does not know how it was cut.
"""
