"""Read safetensors, .bin, LoRA adapters; write 5 GB shards; vocabularies aligned by token."""
