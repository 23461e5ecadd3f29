"""What is wrong with a frame that could be decoded. Pure: says why, and does nothing about it."""

from __future__ import annotations

from edge_server.verifier.interface import Verifier
from sdk.protocol import Draft, Mode, Open, RejectCode

__all__ = ["problem_with_draft", "problem_with_open"]


def problem_with_open(opening: Open, verifier: Verifier) -> tuple[RejectCode, str] | None:
    """Return why the target cannot serve a session, or None."""
    if opening.vocabulary_size != verifier.vocabulary_size:
        return RejectCode.VOCABULARY, (
            f"the drafter has {opening.vocabulary_size} token ids, "
            f"the target {verifier.vocabulary_size}"
        )
    if opening.tokenizer != verifier.tokenizer_hash:
        return RejectCode.TOKENIZER, (
            f"the drafter's tokenizer is {opening.tokenizer[:16]}…, "
            f"the target's {verifier.tokenizer_hash[:16]}…"
        )
    known = len(opening.prompt) + len(opening.committed)
    if known >= verifier.context_length or len(opening.committed) >= opening.max_tokens:
        return RejectCode.CONTEXT, (
            f"{known} tokens leave no room for another: the context holds "
            f"{verifier.context_length}, max_tokens is {opening.max_tokens}"
        )
    return None


def problem_with_draft(
    draft: Draft, opening: Open, verifier: Verifier
) -> tuple[RejectCode, str] | None:
    """Return why a draft cannot belong to the session that was opened so, or None."""
    if draft.highest_id >= verifier.vocabulary_size:
        return RejectCode.VOCABULARY, f"token ids must be below {verifier.vocabulary_size}"
    if draft.proposals and opening.mode is not Mode.RATIO:
        return RejectCode.MODE, "this session was opened for drafts without distributions"
    return None
