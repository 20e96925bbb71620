"""Train one model under its budget, and the methods that read it."""
