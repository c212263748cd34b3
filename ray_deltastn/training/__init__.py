"""The training loop and its parts: options, optimisers, data, reports and exact state."""
