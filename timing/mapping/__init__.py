"""Map a training that ran elsewhere to the RST of a named reference machine."""
