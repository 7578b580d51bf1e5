"""The tasks that ship with their data."""
