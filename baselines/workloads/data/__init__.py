"""Read text and images from files."""
