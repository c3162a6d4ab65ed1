"""Text to tokens and back: step 12 of the walk."""
