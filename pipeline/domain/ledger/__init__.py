"""The ledger of a lineage as the control plane knows it: how strong its prior is, and when it is solved anew."""
