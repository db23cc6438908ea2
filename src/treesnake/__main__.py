"""`python -m treesnake`, the same as `treesnake`."""

from treesnake.cli.app import main

main()
