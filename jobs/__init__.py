"""What you run: `python -m jobs.<verb>`."""
