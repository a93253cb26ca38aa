"""Drawing of numbers that others worked out: forest plots, curves, heat maps, in one style and the same bytes again."""
