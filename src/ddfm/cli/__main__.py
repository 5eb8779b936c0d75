"""`python -m ddfm.cli`."""

from ddfm.cli import main

main()
