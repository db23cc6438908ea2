"""Our own networks, and how they are stored."""
