"""Standard errors, tests, intervals and resampling of arrays of differences; what each could have seen."""
