"""The program that trains an editor: `python -m editors.training`.

`__main__.main` runs it; `loop.TrainingRun` trains any `objective.Objective`, and `run_folder` keeps what comes of it.
"""
