"""The program that measures a base once, before a lineage is made: `python -m editors.prepare`.

`__main__.prepare` fills a folder with prior, reference and settings for what `__main__.Inputs` names.
"""
