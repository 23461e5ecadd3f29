"""Drafting: a small model proposes the tokens that the edge server's large model will verify."""
