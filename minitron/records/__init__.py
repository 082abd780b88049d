"""Written folders: weights and companion files, minitron.json, the model card."""
