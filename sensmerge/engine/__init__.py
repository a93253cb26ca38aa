"""The compiled merge loops: threads, tiles, cached TIES thresholds."""
