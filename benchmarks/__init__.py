"""Benchmarks; they import the package, nothing imports them."""
