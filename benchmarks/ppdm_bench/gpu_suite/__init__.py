"""All measurements that need a GPU, divided into pieces of at most ten minutes."""
