"""What a model remembers of a text, in a form that a token tree can grow on."""
