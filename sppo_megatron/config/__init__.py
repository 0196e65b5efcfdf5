"""What is configured: typed groups, how they are composed, and what is checked before anything is built."""

from sppo_megatron.config.schema import *  # noqa: F403
