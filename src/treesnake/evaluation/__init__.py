"""What anyone can rerun: is it lossless, does it pay, and why."""
