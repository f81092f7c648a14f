"""Simulated users, the comparison of arms, and its report. Nothing else may import this package."""
