"""What users call: enabling, loading, previews of a budget, reports.

May import from every other room of ``offload``.
"""
