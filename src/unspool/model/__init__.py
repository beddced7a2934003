"""PyTorch models whose linear layers stay coded in memory."""
