"""Read the command line, and show a comparison on the screen."""
