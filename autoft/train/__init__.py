"""Training: the one loop, frozen features, heads, checkpoints of changed tensors."""
