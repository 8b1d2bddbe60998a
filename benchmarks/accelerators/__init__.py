"""Compile the steps of built-in models for GPUs and TPUs on a machine that has neither, and check what the compilers say."""
