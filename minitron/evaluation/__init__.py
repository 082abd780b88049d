"""What a model scores: its loss on held-out text, benchmarks, summaries."""
