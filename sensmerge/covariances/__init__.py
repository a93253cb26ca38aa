"""What linear layers of a family see, kept by what it depends on: X^T X for RegMean, sums of |x| for AIM."""
