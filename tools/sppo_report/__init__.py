"""The report: one HTML page from the output folders of runs. It reads files alone and needs no Megatron-Core."""
