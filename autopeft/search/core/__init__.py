"""Jobs, records, events."""
