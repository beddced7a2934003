"""Everything on whatever NVIDIA GPU is here: `make gpu`, described in docs/gpu.md."""
