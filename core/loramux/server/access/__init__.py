"""Who gets in, as whom, and how much of the server each caller may have."""
