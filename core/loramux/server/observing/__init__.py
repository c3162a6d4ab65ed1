"""What is known and told of every request: the log, the metrics, the plugins and the event loop."""
