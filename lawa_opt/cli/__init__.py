"""The command `python -m lawa_opt`, one file a command."""
