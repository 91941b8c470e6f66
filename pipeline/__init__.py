"""The control plane: decides and records. It never imports torch."""
