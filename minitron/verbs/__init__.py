"""The commands: `minitron VERB` and `minitron.VERB()` are in the module VERB here.

Knows the order of the steps. What a step does is on the floors below.
"""
