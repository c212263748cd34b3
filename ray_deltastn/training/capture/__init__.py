"""Train and hyper steps captured once and replayed."""
