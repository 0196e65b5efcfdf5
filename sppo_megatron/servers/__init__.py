"""HTTP servers that share work, whatever they serve."""
