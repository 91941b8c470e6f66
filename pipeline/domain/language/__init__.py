"""Texts as people read them: spellings that are one, where words end, and what an answer says.

`spelling` folds what is only another way to write the same letters. `words` finds names as whole words in any script.
`answers` judges free answers with both, and `pipeline.domain.wordings` replies: the one judgement of gates, evaluation,
chats and the demo.
"""
