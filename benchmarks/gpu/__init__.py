"""What a GPU must show: correct numbers, the cost of self-tuning, and what it buys, in one command."""
