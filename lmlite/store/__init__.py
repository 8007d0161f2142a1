"""What outlives a run: the home folder, who holds it, its log, and the state database."""
