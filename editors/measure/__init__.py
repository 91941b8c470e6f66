"""What an edit did to a model: success, neighbours' answers, quality at large, and the base's reference for all of it.

`EditMeasurer` asks a model about edits, for the gates (`Scorer`) and for `editors.evaluation` alike; `losses` and
`scoring` hold the numbers that both of them and training are made of.
"""
