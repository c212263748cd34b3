"""Pictures and self-contained pages of experiments and comparisons."""
