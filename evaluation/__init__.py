"""Scores of one model: data sets, lm-eval, log-likelihoods, batch sizes, standard errors."""
