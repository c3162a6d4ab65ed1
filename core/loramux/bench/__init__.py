"""Benchmarks: requests made up or replayed, sent to an engine or a server, timed and counted."""
