"""`plan=true`: memory, disk, FLOPs, tokens and time, from configs and file headers."""
