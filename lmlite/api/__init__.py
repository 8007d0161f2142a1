"""The dialects: request bodies become internal values, events become payloads. No socket, clock, random number here."""
