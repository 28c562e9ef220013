"""Figures of a running service, measured over HTTP: `python -m benchmarks`."""
