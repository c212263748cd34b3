"""A suite of tasks that over-fit: self-tuned runs against searches of equal cost."""
