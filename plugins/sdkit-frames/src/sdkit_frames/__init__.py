"""Generators, filters and sinks of frames, first-party."""
