"""The benchmark: options, the plan of a comparison, the loop that computes it, its table, and reports on it."""
