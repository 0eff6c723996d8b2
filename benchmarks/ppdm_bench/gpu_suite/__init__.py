"""All measurements that need a GPU, in pieces that each take at most ten minutes."""
