"""Process isolation: child processes, sweeps of measurements, and cluster jobs."""
