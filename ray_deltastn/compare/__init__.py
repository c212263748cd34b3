"""Compare methods on one task: with the same data, network, ranges and budget of training epochs."""
