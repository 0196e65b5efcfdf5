"""One command, `sppo`, and its sub-commands."""
