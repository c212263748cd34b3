"""Methods head-to-head on one task: the same data, network and ranges, and an equal budget of training epochs."""
