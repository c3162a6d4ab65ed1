"""The commands besides `serve`: each prints a table or JSON, and says by its exit status how it went."""
