"""Models by name: found on disk or at a hub, checked, and read into memory."""
