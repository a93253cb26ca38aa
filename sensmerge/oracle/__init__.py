"""Coefficients fitted by gradients through the merge: how much any rule could gain."""
