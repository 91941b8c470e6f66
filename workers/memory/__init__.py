"""Memory that a rank needs for a base, counted from the model's config before a weight is loaded.

`plan.plan_memory` counts it, and `memory_check.require_memory` refuses a base that cannot fit.
"""
