"""What scored answers say about a policy: estimates that can be quoted, with intervals over prompts."""
