"""Statistics of results: the score matrix and its analyses. Nothing here imports torch, transformers or lm_eval."""
