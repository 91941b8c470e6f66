"""What our processes tell those who operate them: metrics, health, traces and logs.

It stands on libraries alone, so that services, adapters and processes can all use it.
"""
