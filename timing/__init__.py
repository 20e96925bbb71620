"""Reference system time: what a computation costs on one declared machine."""
