"""Average checkpoint files: what LAWA's window does while training runs, done afterwards."""
