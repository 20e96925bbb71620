"""Study windows: which one would have been best, and how many steps it would have saved."""
