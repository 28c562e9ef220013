"""Drivers of other job queues, for `python -m benchmarks.compare`: one module a peer."""
