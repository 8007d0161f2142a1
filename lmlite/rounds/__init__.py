"""Turns are run here: rounds of an engine, each on a lease of its own, and what came of them is kept."""
