"""Commands about a study as a whole: plan, status, verify, clean."""
