"""Splits of tasks and corpora, from files to what training reads."""
