"""What models are trained and scored on: offline tasks, and full-size ones from local files."""
