"""Networks that people really train, small and with random weights: does a self-tuned run take them as they are?"""
