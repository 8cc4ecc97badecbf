"""Requests with a constraint: compiled beside the steps, then kept a token ahead of the sampler.

A request waits here, and nobody else does, until its grammar is compiled; then it enters the queue like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenflow.base.errors import ConstraintFailed, EvenFlowError
from evenflow.serving.client.messages import Submit
from evenflow.serving.core.plan import StepPlan, StepResult
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.structured import StructuredOutputs, TokenMask
from evenflow.serving.grammar.compiler import GrammarCompiler
from evenflow.serving.grammar.mask_ahead import ConstrainedAnswer, MaskAhead

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request whose grammar is ready, or the reason why it never will be."""

    message: Submit
    mask: TokenMask | None
    error: EvenFlowError | None = None


class Constraints:
    """All constraints of one engine. Used on the engine's thread; compiles on one of its own."""

    def __init__(self, make_compiler: Callable[[], GrammarCompiler]) -> None:
        """``make_compiler`` is called once, on the compiling thread. What it raises is every constrained request's refusal."""
        self._pool = ThreadPoolExecutor(1, "grammars")
        self._compiler: Future[GrammarCompiler] = self._pool.submit(make_compiler)
        self._ahead = MaskAhead()
        self._waiting: dict[str, tuple[Submit, Future[LLMatcher]]] = {}
        self._answers: dict[RequestId, ConstrainedAnswer] = {}

    @property
    def is_compiling(self) -> bool:
        """True while a request waits for its grammar."""
        return bool(self._waiting)

    def begin(self, message: Submit) -> TokenMask | None:
        """Return the mask of a request's first token; None if its grammar is being compiled: ``take_compiled`` has it later.

        Raises ConstraintFailed if the model's tokenizer cannot be constrained.
        """
        constraint = message.sampling.structured_outputs
        assert constraint is not None, "a request without a constraint"
        if self._compiler.done():
            matcher = self._compiler.result().cached(constraint)
            if matcher is not None:
                return self._open(RequestId(message.request_id), matcher)
        self._waiting[message.request_id] = (message, self._pool.submit(self._compile, constraint))
        return None

    def take_compiled(self) -> list[Compiled]:
        """Requests whose compilation has ended since the last call, in their order of arrival."""
        ended: list[Compiled] = []
        for request_id, (message, future) in list(self._waiting.items()):
            if not future.done():
                continue
            del self._waiting[request_id]
            error = future.exception()
            if error is None:
                ended.append(Compiled(message, self._open(RequestId(request_id), future.result())))
            else:
                known = error if isinstance(error, EvenFlowError) else ConstraintFailed(f"the constraint failed: {error}")
                ended.append(Compiled(message, None, known))
        return ended

    def advance(self, plan: StepPlan, result: StepResult) -> None:
        """Tell every constrained request of the step its new token. Returns at once."""
        if not self._answers:
            return
        tokens: Mapping[RequestId, object] = result.tokens
        accepted = []
        for sequence in plan.sequences:
            answer = self._answers.get(sequence.request_id)
            if answer is not None and sequence.request_id in tokens:
                token = result.tokens[sequence.request_id]
                if token.error is None:
                    accepted.append((answer, token.token_id))
        self._ahead.advance(accepted)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget those that still wait for their grammar."""
        for request_id in request_ids:
            waiting = self._waiting.pop(request_id, None)
            if waiting is not None:
                waiting[1].cancel()

    def drop(self, request_id: RequestId) -> None:
        """The request has ended."""
        self._answers.pop(request_id, None)

    def close(self) -> None:
        """End the threads. Idempotent."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ahead.close()

    def _compile(self, constraint: StructuredOutputs) -> LLMatcher:
        return self._compiler.result().compile(constraint)

    def _open(self, request_id: RequestId, matcher: LLMatcher) -> ConstrainedAnswer:
        answer = self._answers[request_id] = self._ahead.begin(matcher)
        return answer
