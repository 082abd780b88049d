"""The scores of a model: loss on held-out text, benchmarks, summaries."""
