"""The data plane: turns edits into weight deltas. Knows `pipeline.domain` and nothing else of ours."""
