"""The loop, and what only the loop needs. `python -m sppo_megatron.train` is the command."""
