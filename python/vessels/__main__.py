"""``python -m vessels``."""

from vessels.cli import main

main()
