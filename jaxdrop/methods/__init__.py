"""The methods, one family a file; families do not import each other."""
