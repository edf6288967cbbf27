"""Templates and the copies of them that wait."""
