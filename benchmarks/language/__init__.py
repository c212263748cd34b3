"""Language models: self-tuned runs against constants and random search, with an LSTM and with a transformer."""
