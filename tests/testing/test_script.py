"""Which request meets which fault."""

from __future__ import annotations

import pytest

from tinker_async import ConfigError
from tinker_async.testing import FakeService, faults


def fates(service: FakeService, endpoint: str, count: int) -> list[str | None]:
    found = [service.faults.choose(endpoint) for _ in range(count)]
    return [None if fault is None else str(fault) for fault in found]


def test_occurrences_count_from_when_the_rule_was_added(service: FakeService) -> None:
    fates(service, "asample", 2)
    rule = service.faults.on("asample", faults.DropReply(), occurrence=(1, 3))

    assert ["DropReply", None, "DropReply", None] == fates(service, "asample", 4)
    assert 2 == rule.hits


def test_without_an_occurrence_all_are_meant_and_times_bounds_them(service: FakeService) -> None:
    service.faults.on("asample", faults.Refuse(), times=2)
    service.faults.on("asample", faults.DropReply())

    assert ["Refuse", "Refuse", "DropReply"] == fates(service, "asample", 3)


def test_the_first_rule_counts_and_all_rules_count_requests(service: FakeService) -> None:
    """So that the second one's third request is the third, whoever had it."""
    service.faults.on("asample", faults.Refuse(), occurrence=(1, 2))
    service.faults.on("asample", faults.DropReply(), occurrence=(2, 3))

    assert ["Refuse", "Refuse", "DropReply", None] == fates(service, "asample", 4)


def test_a_removed_rule_is_over(service: FakeService) -> None:
    rule = service.faults.on("asample", faults.Refuse())
    rule.remove()
    rule.remove()
    service.faults.on("asample", faults.DropReply())
    service.faults.clear()

    assert [None] == fates(service, "asample", 1)


def test_everywhere_counts_each_endpoint_on_its_own_and_leaves_connections_alone(
    service: FakeService,
) -> None:
    service.faults.on("*", faults.Status(500), occurrence=2)

    assert [None, "Status(500)", None] == fates(service, "asample", 3)
    assert [None, "Status(500)"] == fates(service, "optim_step", 2)
    assert [None, None] == fates(service, "connect", 2)


def test_a_fault_happens_only_where_it_makes_sense(service: FakeService) -> None:
    service.faults.on("*", faults.OperationFails())
    service.faults.on("*", faults.QueueState())

    assert [None] == fates(service, "get_info", 1)
    assert ["OperationFails"] == fates(service, "optim_step", 1)


def test_an_endpoint_that_does_not_exist_is_refused(service: FakeService) -> None:
    with pytest.raises(ConfigError, match=r"no endpoint 'sample'.*asample"):
        service.faults.on("sample", faults.Refuse())


def test_random_faults_are_the_same_for_the_same_seed_however_requests_mix() -> None:
    """The fate of the n-th request of an endpoint does not depend on other endpoints."""
    kinds = [faults.DropReply(), faults.Refuse(), faults.Status(503)]

    def run(*endpoints: str, seed: int) -> dict[str, list[str | None]]:
        service = FakeService()
        service.faults.on("*", faults.Random(rate=0.3, seed=seed, kinds=kinds))
        return {name: fates(service, name, 400) for name in endpoints}

    one = run("asample", "optim_step", seed=1)
    assert one == run("optim_step", "asample", seed=1)
    assert one != run("asample", "optim_step", seed=2)
    hits = [fate for fate in one["asample"] if fate is not None]
    assert 80 < len(hits) < 160
    assert {"DropReply", "Refuse", "Status(503)"} == set(hits)
    assert one["asample"] != one["optim_step"]
