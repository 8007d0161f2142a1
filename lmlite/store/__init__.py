"""What outlives a run: the home folder, who holds it, and its log."""
