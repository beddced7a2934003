"""Checkpoints: safetensors shards and a config.json with the full declarations."""
