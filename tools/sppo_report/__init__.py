"""The report: one HTML page from the output folders of runs. Reads files alone; needs neither torch nor Megatron."""
