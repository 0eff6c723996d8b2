"""Tables: each module says its columns, and ``render`` and ``text`` write them."""
