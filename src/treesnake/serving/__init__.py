"""Many texts of one decoder at once, for clients of OpenAI's API."""
