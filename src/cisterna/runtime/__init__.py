"""How jobs are started: launchers, the fork server, workarounds for other programs."""
