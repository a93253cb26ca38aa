"""X^T X of linear layers' inputs for a family, kept by what it depends on: what RegMean looks at."""
