"""Quality: what is compared, every candidate on every case, and what is made of it."""
