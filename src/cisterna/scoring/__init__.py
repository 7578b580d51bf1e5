"""What an answer is worth: parsing, rewards, metrics."""
