"""Is the data here, do gold answers score 1, which items are the fixed subsets."""
