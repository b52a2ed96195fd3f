"""One file per version of our schema."""
