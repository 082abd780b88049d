"""Training on text and on a teacher's predictions, with transformers' Trainer."""
