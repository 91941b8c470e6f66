"""Programs that measure what BENCHMARKS.md tells: `python -m tests.benchmarks.NAME`. Tests run them on small sizes."""
