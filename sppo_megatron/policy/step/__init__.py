"""One optimizer step: forward pass, LM head, loss, optimizer."""
