"""Fixes of findings, made with libcst, which is imported only when something is fixed. Imports running and below."""
