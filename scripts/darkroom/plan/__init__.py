"""Which shards, requests and keys there are, told from rows and config alone."""
