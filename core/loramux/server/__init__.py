"""The OpenAI-compatible HTTP server: requests in, engine work, answers out."""
