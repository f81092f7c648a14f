"""Compare ways of sharing on simulated fleets."""
