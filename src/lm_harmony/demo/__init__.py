"""The embedded default: a made-up world, six micro-benchmarks about it, eight tiny models that have read of it."""
