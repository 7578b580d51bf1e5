"""Data of published forms as tasks."""
