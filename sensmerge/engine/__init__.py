"""The merge loops, compiled on a CPU, as Triton kernels on a GPU: threads, tiles, thresholds of TIES."""
