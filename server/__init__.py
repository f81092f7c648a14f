"""What coordinates a fleet: rounds, checkpoints, hyperparameters, a registry of adapters. It never sees a dialogue."""
