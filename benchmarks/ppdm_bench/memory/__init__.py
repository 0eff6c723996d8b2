"""Peak memory: predicted without a GPU, measured with one."""
