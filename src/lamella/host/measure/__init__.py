"""What instances were promised and what they got: one sampler a host, and the judge over what it wrote down."""
