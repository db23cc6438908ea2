"""Training of drafters: from text and prompts to a folder that `--drafter` takes."""
