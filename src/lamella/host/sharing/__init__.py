"""What instances of a host share of its memory, as its policy says: equal pages (KSM), pages set apart, and the saving as a number."""
