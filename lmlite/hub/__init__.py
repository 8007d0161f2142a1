"""Model files from a Hugging Face hub: what to fetch, fetching it, and the jobs that do. Knows neither HTTP API nor disk
catalogue; blocking work is done in threads."""
