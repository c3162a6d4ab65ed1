"""From an adapter name to checked weights in a slot."""
