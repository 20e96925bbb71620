"""Read the command line, and end as this project's commands do."""
