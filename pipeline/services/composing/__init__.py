"""What a candidate consists of: the edits that come and go, what is measured, and a ledger that is solved anew."""
