"""Files in the results folder of an experiment."""
