"""Generated programs run apart, with limits on memory, time, files and network."""
