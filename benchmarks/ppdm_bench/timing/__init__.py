"""Time and FLOPs of training steps and of sampled volumes, and the peak rate of the device."""
