"""What several notebooks share and a user of the library does not need."""
