"""Tables: each module defines the columns of one, and ``render`` writes them."""
