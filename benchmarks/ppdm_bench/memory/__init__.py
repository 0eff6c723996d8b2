"""Peak memory: prediction without a GPU, measurement with one."""
