"""A bounded soak: a real training job and a real server while everything around them fails, on a seeded schedule."""
