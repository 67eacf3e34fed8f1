"""What a plugin can offer, and what loads it."""
