"""One run: RunSpec and its id, preflight checks, stages and their cache, record.json."""
