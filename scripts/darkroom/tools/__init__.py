"""Commands on a results folder: plan, verify, prune, replay, watch."""
