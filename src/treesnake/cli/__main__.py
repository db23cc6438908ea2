"""`python -m treesnake.cli`, the same as `treesnake`."""

from treesnake.cli.app import main

main()
