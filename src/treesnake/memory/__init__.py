"""What was said in earlier texts: kept in a process, and in a folder if that is wanted."""
