"""What stages leave on disk, and what keeps it whole: files, checkpoints, work folders, progress, shutdown."""
