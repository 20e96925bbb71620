"""Say how each method trains and what is evaluated of it."""
