"""What a model scores on benchmarks and in summarizing, and where such results are written."""
