"""The demo: a made-up world, six small benchmarks about it, and eight tiny models pre-trained on texts about it."""
