"""P values, confidence intervals, Holm's correction; which runs are compared."""
