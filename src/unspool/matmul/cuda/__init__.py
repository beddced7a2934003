"""Products on NVIDIA GPUs: weights are decoded in registers, right before the matrix unit."""
