"""Fixed-budget comparisons."""
