"""Adapters to other people's kernels: each finds its library, or says how to get it."""
