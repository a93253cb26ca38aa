"""Tokens that continue prompts: transformers' generate, or a loop of our own over fixed slots."""
