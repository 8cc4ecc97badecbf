"""Fair dispatch in a gateway of your own: only ``evenflow.fairness``, no engine, no torch.

Two tenants share a backend that serves one request at a time. One sends long prompts by the dozen, the other a short
question now and then. VTC decides who is next; the printed account shows that both got the same service while both waited.

    python examples/gateway_dispatch.py
"""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.fairness.books.cost import Service
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.registry import create_policy


@dataclass(frozen=True)
class GatewayRequest:
    """What a policy wants to know of a request (``evenflow.fairness.policy.Schedulable``)."""

    request_id: str
    client_id: str
    num_prompt_tokens: int
    num_output_tokens: int = 0
    max_output_tokens: int = 100
    arrival_s: float = 0.0
    adapter: str | None = None
    known_output_tokens: int | None = None


def main(policy_name: str = "vtc") -> dict[str, float]:
    """Serve for a while and print the accounts; returns service by client."""
    queues = ClientQueues()
    policy = create_policy(policy_name, queues=queues)
    service: dict[str, float] = {"batch": 0.0, "chat": 0.0}
    now_s = 0.0

    def send(request: GatewayRequest) -> None:
        verdict = policy.arrive(request, now_s)
        if not verdict.is_accepted:
            print(f"{request.request_id}: not now ({verdict.reason}), again in {verdict.retry_after_s:.0f} s")
            return
        if queues.push(request):  # the client had nothing waiting
            policy.backlogged(request.client_id)

    for number in range(40):
        send(GatewayRequest(f"batch-{number}", "batch", num_prompt_tokens=400))
    for number in range(40):
        send(GatewayRequest(f"chat-{number}", "chat", num_prompt_tokens=40))

    order = []
    for _ in range(30):
        request = policy.pick(now_s)
        if request is None:
            break
        is_last = queues.remove(request)
        policy.admitted(request, Service(prefill_tokens=request.num_prompt_tokens))  # charged before the next pick
        if is_last:
            policy.emptied(request.client_id)

        # ... here the gateway would send the request to a backend and count the answer's tokens ...
        output_tokens = 50
        policy.charge(request, Service(prefill_tokens=request.num_prompt_tokens, decode_tokens=output_tokens))
        policy.settle(request)
        service[request.client_id] += request.num_prompt_tokens + 2 * output_tokens
        order.append(request.client_id[0])
        now_s += 1.0

    print("served in this order:", " ".join(order))
    print("service (1 per prompt token, 2 per output token):", service)
    return service


if __name__ == "__main__":
    main()
