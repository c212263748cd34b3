"""What lies in the folder of an experiment."""
