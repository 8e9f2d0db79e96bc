"""Rules about the block state and the pipeline state. Imports rules.base and below."""
