"""Reconstruction: the linears of a pruned model fitted to what its source computes.

Closed form, layer by layer, on calibration text; nothing is trained.
"""
