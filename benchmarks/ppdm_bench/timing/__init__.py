"""Time of training steps and of sampled volumes, their FLOPs, and the peak rate of the device."""
