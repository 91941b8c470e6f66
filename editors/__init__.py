"""The data plane: turns edits into weight deltas. Of ours it imports `pipeline.domain` alone."""
