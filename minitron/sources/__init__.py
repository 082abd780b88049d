"""Models to read: a Hub folder, a `.nemo`, one in memory, one cut by a plan, layer by layer.

A `Source` has a config, tensors that are read when they are used, and companion files. Writes
nothing.
"""
