"""Searchers for what a trial cannot tune itself."""
