"""Self-contained HTML pages about runs and sweeps, and figures as PNG files."""
