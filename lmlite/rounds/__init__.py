"""Running a turn, and what is kept of it."""
