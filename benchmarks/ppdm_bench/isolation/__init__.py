"""Work in processes of its own: child processes, sweeps, and jobs on a cluster."""
