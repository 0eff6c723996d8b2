"""Time of training steps and of volumes, the arithmetic that they take, and what the device could do."""
