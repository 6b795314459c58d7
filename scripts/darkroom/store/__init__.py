"""Files of pictures and scores: shards, scratch, what is carried over."""
