"""Command lines beside training. Each is a module with `main`, a script in tools/ and a console script of its name."""
