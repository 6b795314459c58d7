"""All shards together: checked, selected, written as tables."""
