"""What `sppo doctor` looks at. Nothing here needs Megatron-Core: it must work where that is broken.

finding.py      what was found out, and what to do about it
packages.py     versions, imports, packages that don't fit each other
devices.py      torch's CUDA, driver, NCCL, GPUs
fused_paths.py  which implementation each operation will use
features.py     what a configuration asks for and this machine can't do
connectivity.py the ranks of a job find each other
collectives.py  collectives and point-to-point calls against known values
links.py        latency and bandwidth of each pair of ranks, speed of each rank
stragglers.py   which ranks and pairs fall behind
ranks.py        all of that for the ranks of a job, and the names of wrong, slow and differing ones
"""
