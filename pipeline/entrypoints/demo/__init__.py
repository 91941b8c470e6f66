"""The demo: the main job on the embedded stack, from a topic to an approved model and back.

`run.run_demo` is what `corrigenda demo` calls.
"""
