"""The command: it presents what the API says. It reads documents rather than structs, so that it starts at once."""
