"""Tensors of files onto a device and back: read ahead into pinned buffers, written by several threads, kept."""
