"""Commands on a results folder: plan, trial, verify, prune, replay, watch."""
