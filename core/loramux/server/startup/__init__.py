"""`loramux serve`: from arguments to a server that answers, and from a signal to its end."""
