"""Benchmarks. They import the package; the package does not import them."""
