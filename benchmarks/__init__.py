"""Each prints a ratio against a peer, measured side by side in one run: `python -m benchmarks.<name>`."""
