"""The review pages: what waits, what an edit did, approve, reject, revert, roll back; served under /review.

They are rendered here and readable without JavaScript. It exports nothing; import its modules.
"""
