"""What Megatron-Core builds of a model in Hugging Face format."""
