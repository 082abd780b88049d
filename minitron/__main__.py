"""`python -m minitron` is the console script."""

from minitron.cli import main

main()
