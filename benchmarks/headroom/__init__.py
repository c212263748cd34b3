"""A suite of tasks with few training examples: self-tuned runs against searches of equal cost."""
