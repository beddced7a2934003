"""Decode fused with multiply."""
