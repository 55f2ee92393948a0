"""Methods for attention: its weights, its heads, and its keys."""
