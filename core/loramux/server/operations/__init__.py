"""What operators ask for: adapters, health, figures, the dashboard and the description of the API."""
