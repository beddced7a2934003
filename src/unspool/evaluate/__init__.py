"""Quality: distortion, perplexity, divergence."""
