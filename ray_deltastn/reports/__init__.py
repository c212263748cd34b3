"""Pictures and self-contained HTML pages of experiments and comparisons."""
