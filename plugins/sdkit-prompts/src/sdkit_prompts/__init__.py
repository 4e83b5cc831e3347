"""Prompt syntaxes of other tools for sdkit: one tree, weight laws, schedules, AND, long prompts."""
