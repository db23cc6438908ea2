"""Fuzzing: right specimens, what is done to them, how they are opened, and what comes of it.

`cases` says what an input is, `doors` lists the doors, `process` runs an input in a process of its
own, `verdicts` judges what came of it, `session` does so for as long as it is told to.
"""
