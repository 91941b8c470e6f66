"""Everything that starts as a process: the command `corrigenda`, the demo, intake, and the migration job.

Each reads the settings, has `pipeline.bootstrap` build what it needs, and runs; nothing else imports this package.
"""
