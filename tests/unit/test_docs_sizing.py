"""The capacity model: its arithmetic, by costs in round numbers, and that docs/sizing.md shows what it makes."""

from dataclasses import fields, replace

import pytest

from bronze.settings import Settings
from docs import sizing
from docs.sizing import APIS_MAX, BULK_RECORDS, DAY_S, GB, MEASURED, PAGE, UTILIZATION, Costs, Load, Plan

#: A submission takes 1 ms in the API, a record 2 us; 0.5 ms and 3 us in the consumer, an object 10 ms; and so on.
MEASUREMENTS = f"""
<!-- bench: small -->
|  | off | 100 % |
| --- | --: | --: |
| CPU endpoint, ms | 9 | 1 |
| CPU consumer, ms | 9 | 0.5 |
| CPU nats, ms | 9 | 0.1 |
<!-- end -->
<!-- bench: bulk -->
2 CPUs, load average 3 at the end.

|  | limit | service 10k |
| --- | --: | --: |
| CPU limit, s | 9.08 |  |
| CPU api, s | 1 | {BULK_RECORDS * (2e-6 + 1e-3 / 10_000)} |
| CPU consumer, s | 1 | {BULK_RECORDS * (3e-6 + 0.5e-3 / 10_000)} |
| CPU nats, s | 1 | {BULK_RECORDS * (0.5e-6 + 0.1e-3 / 10_000)} |
<!-- end -->
<!-- bench: growth -->
|  | once |
| --- | --: |
| CPU nats, s | 0.14 |

|  | young lane | after 10,000 objects |
| --- | --: | --: |
| CPU consumer, ms | 10.5 | 9 |
| CPU nats, ms | 5.1 | 9 |
<!-- end -->
<!-- bench: memory -->
|  | one body | ten million |
| --- | --: | --: |
| peak api, MB | 1 | 200 |
| peak consumer, MB | 1 | 500 |
<!-- end -->
<!-- bench: objects -->
|  | records | queue bytes per record | bytes per record |
| --- | --: | --: | --: |
| 1 records | 1 | 1,000 | 7,000 |
| 10 records | 10 | 1,000 | 1,000 |
| 100 records | 100 | 300 | 200 |
| 1,000 records | 1,000 | 40 | 60 |
| 10,000 records | 10,000 | 20 | 40 |
| 100,000 records | 100,000 | 20 | 40 |
| 300,000 records | 300,000 | 20 | 40 |
<!-- end -->
<!-- bench: identities -->
|  | 300,000 identities |
| --- | --: |
| memory, bytes per identity | 400 |
| disk, bytes per identity | 800 |
| CPU nats, us per identity | 30 |
| start, s | 3 |
<!-- end -->
<!-- bench: view -->
2 CPUs

|  | 1,000 of 100 | 2,000 of 10 |
| --- | --: | --: |
| objects | 1,000 | 2,000 |
| submissions | 100,000 | 20,000 |
| GB | 0.011 | 0.006 |
| CPU build, s | 2 | 2.2 |
| kB of the entry | 31 | 4 |
| memory after look-ups, MB | 20 | 40 |

|  | first, ms |
| --- | --: |
| a submission | 1 |
<!-- end -->
"""
COSTS = Costs(MEASUREMENTS)
LOAD = Load(records_per_s=100_000, record_bytes=sizing.SAMPLE_RECORD_BYTES, records_per_submission=1_000, sources=4)


def of(**changes: float) -> Plan:
    return Plan(replace(LOAD, **changes), COSTS)


# --- costs


def test_costs_are_taken_from_the_tables() -> None:
    """Of each part only its own, from rows or from columns; a cell without a figure counts as none."""
    assert COSTS.figure("bulk", "CPU limit, s", "limit") == 9.08
    assert COSTS.figure("objects", "bytes per record", "1 records") == 7000
    assert COSTS.figure("growth", "CPU nats, s", "once") == 0.14
    for part, figure, variant in (
        ("bulk", "CPU limit, s", "service 10k"),
        ("bulk", "peak api, MB", "one body"),
        ("other", "records", "1"),
    ):
        with pytest.raises(KeyError):
            COSTS.figure(part, figure, variant)


def test_costs_are_split_into_those_of_submissions_records_and_objects() -> None:
    assert COSTS.submission_cpu_s("endpoint") == pytest.approx(1e-3)
    assert COSTS.record_cpu_s("api") == pytest.approx(2e-6)
    assert COSTS.record_cpu_s("consumer") == pytest.approx(3e-6)
    assert COSTS.object_cpu_s("consumer") == pytest.approx(10e-3)
    # 1,000 objects with 100,000 submissions and 2,000 with 20,000: 2,000 and 90 bytes each
    per_object, per_submission = COSTS.index_per_object_and_submission("GB")
    assert per_object * 1_000 + per_submission * 100_000 == pytest.approx(0.011)
    assert per_object * 2_000 + per_submission * 20_000 == pytest.approx(0.006)


def test_a_value_between_two_that_were_measured_is_on_the_logarithm() -> None:
    points = [(1.0, 7000.0), (100.0, 1000.0)]
    assert [sizing.between(points, at) for at in (0.1, 1, 10, 100, 1e9)] == [7000, 7000, 4000, 1000, 1000]


# --- needs


def test_cores_are_the_sum_of_submissions_records_and_objects() -> None:
    plan = of(queries_per_s=0)
    assert plan.api_cores == pytest.approx(100 * 1e-3 + 100_000 * 2e-6)
    assert plan.consumer_cores == pytest.approx(100 * 0.5e-3 + 100_000 * 3e-6 + plan.objects_per_s * 10e-3)
    assert plan.queue_cores == pytest.approx(100 * 0.1e-3 + 100_000 * 0.5e-6 + plan.objects_per_s * 5e-3)
    assert of(record_bytes=2 * LOAD.record_bytes, queries_per_s=0).api_cores == pytest.approx(100 * 1e-3 + 0.4)


def test_an_object_is_old_enough_or_full() -> None:
    """By age, by its bytes, or by the number of its submissions."""
    slow = of(records_per_s=400)
    assert slow.records_per_object == 1_000 + 100 * 15
    assert of(records_per_s=400, lanes=2).records_per_object == 1_000 + 50 * 15
    full = of(records_per_s=4_000_000)
    assert full.records_per_object == pytest.approx(Settings().object_bytes_max / LOAD.record_bytes)
    many = of(records_per_s=40_000, records_per_submission=1, lanes=1)
    assert many.records_per_object == Settings().object_submissions_max
    assert slow.puts_per_day == pytest.approx(400 * DAY_S / 2_500)


def test_lanes_are_as_many_as_one_process_can_write_each() -> None:
    for rate in (1_000, 100_000, 1_000_000, 3_000_000):
        plan = of(records_per_s=rate)
        each = plan.consumer_cores / plan.lanes / plan.load.sources
        assert each <= UTILIZATION
        if plan.lanes > 1:
            assert of(records_per_s=rate, lanes=plan.lanes - 1).consumer_cores / (plan.lanes - 1) / 4 > UTILIZATION
    assert of(lanes=7).lanes == 7


def test_the_queue_holds_an_outage_and_the_identities_of_a_day() -> None:
    plan = of(outage_h=2, retention_days=0, lanes=1)
    assert plan.queue_bytes_per_s == pytest.approx(100_000 * 20)
    assert plan.lane_queue_bytes == pytest.approx(100_000 * 20 * 7_200 / 4)
    assert plan.queue_disk_bytes == pytest.approx(100_000 * 20 * 7_200 + 100 * DAY_S * 800)
    assert plan.queue_memory_bytes == pytest.approx(sizing.QUEUE_SERVER_MEMORY_BYTES + 100 * DAY_S * 400)
    assert plan.queue_start_s == pytest.approx(100 * DAY_S * 3 / 300_000)


def test_the_index_grows_with_objects_and_submissions_that_are_kept() -> None:
    plan = of(retention_days=10)
    per_object, per_submission = COSTS.index_per_object_and_submission("GB")
    assert plan.entries == pytest.approx(plan.puts_per_day * 10)
    assert plan.submissions_kept == pytest.approx(100 * DAY_S * 10)
    assert plan.index_bytes / GB == pytest.approx(per_object * plan.entries + per_submission * plan.submissions_kept)


def test_money_follows_the_prices() -> None:
    plan = of()
    money = plan.money
    assert money["bucket"] == pytest.approx(plan.bucket_bytes_per_day * 30 / GB * 0.023)
    assert money["PUT"] == pytest.approx(plan.puts_per_day * 30 / 1000 * 0.005)
    dearer = of(core_hour_price=2 * LOAD.core_hour_price, thousand_puts_price=0)
    assert dearer.money["cores and memory"] == pytest.approx(2 * money["cores and memory"])
    assert dearer.money["PUT"] == 0


def test_ten_times_the_load_needs_no_less_of_anything() -> None:
    for records in (1, 10, 1_000):
        few, many = (of(records_per_s=rate, records_per_submission=records) for rate in (1_000, 10_000))
        for limit in few.limits:
            (same,) = [other for other in many.limits if other.name == limit.name]
            if "lane" not in limit.name and "bucket" not in limit.name:  # of a lane, and there may be more lanes
                assert same.needed >= limit.needed, limit.name
        assert sum(many.money.values()) > sum(few.money.values())


# --- limits


def test_the_first_limit_is_the_one_of_which_the_least_is_left() -> None:
    """Identities are in the memory of the queue's servers: 400 bytes of each submission of a day."""
    plan = of(queue_memory_gb=1, retention_days=0)
    assert plan.limits[0].name == "memory of a queue server"
    assert plan.limits[0].needed == pytest.approx((200e6 + 100 * DAY_S * 400) / 1e9)
    assert sizing.first_limits(plan).startswith("memory of a queue server (3.66 times)")
    shares = [limit.share for limit in plan.limits]
    assert shares == sorted(shares, reverse=True)


def test_the_limits_that_a_load_reaches_depend_on_it() -> None:
    assert sizing.first_limits(of(records_per_s=10, retention_days=1)).startswith("none; nearest:")
    small = of(records_per_s=100_000, records_per_submission=1)
    assert small.apis > APIS_MAX
    assert "API processes" in sizing.first_limits(small)
    assert "a lane: one process writes it" in sizing.first_limits(of(records_per_s=2_000_000, lanes=1))
    assert "following the catalog" in sizing.first_limits(of(records_per_s=1_000_000, records_per_submission=10))
    assert "queue while the bucket is away" in sizing.first_limits(of(outage_h=24, lanes=1))


def test_numbers_are_shown_with_three_digits() -> None:
    shown = [sizing.shown(value) for value in (0, 2, 0.01234, 0.5, 1.2345, 12.345, 123.45, 1234.5, 86_400_000)]
    assert shown == ["0", "2", "0.012", "0.500", "1.23", "12.3", "123", "1,230", "86,400,000"]


# --- the page


def test_the_page_is_in_sync_with_the_measurements() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == sizing.page(text)
    marked = {mark[2] for mark in sizing._MARKED.finditer(text)}
    assert marked == {*sizing.tables(MEASURED.read_text(encoding="utf-8"))}


def test_every_option_is_on_the_page_and_changes_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for field in fields(Load):
        option = f"--{field.name.replace('_', '-')}"
        assert f"`{option}`" in text
        assert sizing.main([option, "0.5" if "price" in field.name else "3"]) == 0
    assert capsys.readouterr().out.count("limits that are reached") == len(fields(Load))
