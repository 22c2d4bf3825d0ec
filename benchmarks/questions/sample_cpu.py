"""How much CPU does a client spend on one sample, 64 in flight?

512 prompt tokens, 256 sampled tokens with log-probs; the answer is ready at once. User and
system time of all threads of the process, warmed up, divided by the number of samples.
"""

from __future__ import annotations

from benchmarks.harness import Bench, stub_server
from benchmarks.rows import Row, at_most, better, column

_IN_FLIGHT = 64


def ask(bench: Bench) -> list[Row]:
    number = bench.scaled(1000, least=128)
    rows = []
    with stub_server() as stub:
        for tls in (True, False):
            before = stub.figures()
            found = bench.each_client(
                stub, "samples", number=number, warm_up=128, in_flight=_IN_FLIGHT, tls=tls
            )
            after = stub.figures()
            stub_ms = (
                1e3 * (after["cpu_s"] - before["cpu_s"]) / (after["requests"] - before["requests"])
            )
            cost = column(found, "cpu_ms_per_sample")
            rows.append(
                Row(
                    name="sample_cpu" if tls else "sample_cpu_http1",
                    table="client",
                    what=f"CPU per sample, {_IN_FLIGHT} in flight, "
                    + ("TLS, h2" if tls else "plain HTTP/1.1"),
                    unit="ms",
                    runs=cost,
                    question="sample_cpu",
                    must=better(8 if tls else 4),
                    aim=better(20 if tls else 15),
                    note=f"the stub's own CPU: {stub_ms:.3f} ms a request",
                )
            )
            if tls:
                rows.append(_trio_row(cost))
    return rows


def _trio_row(cost: dict[str, list[float]]) -> Row:
    ratio = [trio / own for trio, own in zip(cost["trio"], cost["asyncio"], strict=True)]
    return Row(
        name="sample_cpu_trio",
        table="client",
        what="CPU per sample on trio against asyncio",
        unit="x",
        runs={"trio": ratio},
        question="sample_cpu",
        ours="trio",
        than=None,
        must=at_most(1.3),
    )
