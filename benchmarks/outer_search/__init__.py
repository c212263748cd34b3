"""Searchers on functions with a known minimum, in the driver's loop of Ray Tune without trials."""
