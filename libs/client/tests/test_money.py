"""synod spend, budget and prices: what is asked of the ledger, and what is shown and written."""

import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from synod.common.money import format_usd
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod_client.cli import app
from synod_client.cli.exports import decimal_usd, focus_row
from synod_client.cli.output import Exit
from synod_client.testing import FakeSystem, Fault
from typer.testing import CliRunner

Command = Callable[..., Any]
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

FOCUS_MANDATORY = {
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd"),
    *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity"),
    *("PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
}
"""FOCUS 1.2: columns of feature level Mandatory. Of these BillingAccountName and ChargeClass may be null here."""
FOCUS_OTHERS = {
    *("ChargeFrequency", "ConsumedQuantity", "ConsumedUnit", "PricingCategory", "ServiceSubcategory"),
    *("SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "Tags"),
}
"""FOCUS 1.2: recommended and conditional columns, of those that the ledger knows."""


@pytest.fixture
def synod(fakes: FakeSystem, tmp_path: Path) -> Command:
    """Runs `synod ...` in this process."""
    fakes.write(tmp_path / "data")

    def invoke(*arguments: str) -> Any:
        environment = {"SYNOD_DATA": str(tmp_path / "data"), "COLUMNS": "200", "SYNOD_API_KEY": None}
        return CliRunner().invoke(app, list(arguments), env=environment)

    return invoke


def at(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


def charge(**more: Any) -> pb.ExportedCharge:
    owner = pb.Attribution(tenant_id="acme", agent="writer", project_id="p1", model="openai/gpt-5.5")
    given: dict[str, Any] = {"id": "r1", "kind": "reservation", "attribution": owner, "incurred_at": at(NOON)}
    return pb.ExportedCharge(**(given | {"cost_nano_usd": 1_500, "input_tokens": 10, "output_tokens": 5} | more))


class TestBudgets:
    def test_a_quota_for_each_conversation_in_a_rolling_window(self, synod: Command, fakes: FakeSystem) -> None:
        set_ = pb.Budget(
            budget_id="talk",
            unit="tokens",
            limit=5_000,
            available=5_000,
            window="rolling",
            rolling=Duration(seconds=3_600),
            per="conversation_id",
            time_zone="UTC",
        )
        fakes.answer("cost-ledger", "SetBudget", set_)
        words = [
            "--unit",
            "tokens",
            "--window",
            "rolling",
            "--rolling",
            "1h",
            "--per",
            "conversation_id",
            "--tool",
            "sql",
        ]
        shown = synod("budget", "set", "talk", "5000", *words)
        assert shown.exit_code == Exit.DONE, shown.stderr
        assert "last 1:00:00" in shown.stdout
        assert "5,000 tokens" in shown.stdout
        assert "each conversation_id" in shown.stdout
        (asked,) = fakes.requests("SetBudget")
        assert (asked.unit, asked.limit_quantity, asked.limit_nano_usd, asked.scope.tool) == ("tokens", 5_000, 0, "sql")
        assert (asked.rolling.seconds, asked.per) == (3_600, "conversation_id")

    def test_a_window_by_the_clock_of_a_place(self, synod: Command, fakes: FakeSystem) -> None:
        shown = pb.Budget(budget_id="daily", window="day", time_zone="Europe/Berlin", limit=5 * 10**9)
        fakes.answer("cost-ledger", "SetBudget", shown)
        assert (
            "day Europe/Berlin"
            in synod("budget", "set", "daily", "5", "--window", "day", "--zone", "Europe/Berlin").stdout
        )
        (asked,) = fakes.requests("SetBudget")
        assert (asked.time_zone, asked.unit, asked.limit_nano_usd) == ("Europe/Berlin", "nano_usd", 5 * 10**9)

    def test_a_budget_that_there_is_keeps_what_is_not_given(self, synod: Command, fakes: FakeSystem) -> None:
        made = pb.Budget(
            budget_id="p1",
            scope=pb.Attribution(tenant_id="acme", project_id="p"),
            window="rolling",
            rolling=Duration(seconds=3_600),
            per="user_id",
            unit="tokens",
            time_zone="Europe/Berlin",
        )
        fakes.answer("cost-ledger", "GetBudget", made)
        fakes.answer("cost-ledger", "SetBudget", made)
        assert synod("budget", "set", "p1", "500").exit_code == Exit.DONE
        assert synod("budget", "set", "p1", "500", "--hard").exit_code == Exit.DONE
        same, hard = fakes.requests("SetBudget")
        kept = pb.SetBudgetRequest(
            budget_id="p1",
            scope=pb.Attribution(project_id="p"),
            limit_quantity=500,
            window="rolling",
            rolling=Duration(seconds=3_600),
            per="user_id",
            unit="tokens",
            time_zone="Europe/Berlin",
        )
        assert same == kept
        kept.hard = True
        assert hard == kept

    def test_what_is_given_of_a_budget_that_there_is_stands_instead(self, synod: Command, fakes: FakeSystem) -> None:
        scope = pb.Attribution(project_id="p", agent="writer")
        made = pb.Budget(budget_id="p1", scope=scope, window="rolling", rolling=Duration(seconds=60), hard=True)
        fakes.answer("cost-ledger", "GetBudget", made)
        fakes.answer("cost-ledger", "SetBudget", made)
        words = ["--project", "q", "--window", "day", "--zone", "Asia/Tokyo", "--unit", "calls", "--soft"]
        assert synod("budget", "set", "p1", "5", *words).exit_code == Exit.DONE
        (asked,) = fakes.requests("SetBudget")
        assert (asked.scope, asked.window, asked.time_zone) == (pb.Attribution(project_id="q"), "day", "Asia/Tokyo")
        assert (asked.HasField("rolling"), asked.unit, asked.limit_quantity, asked.hard) == (False, "calls", 5, False)

    @pytest.mark.parametrize("answer", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED])
    def test_a_new_budget_is_hard_in_dollars_for_ever_and_for_the_whole_tenant(
        self, synod: Command, fakes: FakeSystem, answer: grpc.StatusCode
    ) -> None:
        fakes.answer("cost-ledger", "GetBudget", Fault(answer, "none for you"))
        fakes.answer("cost-ledger", "SetBudget", pb.Budget(budget_id="p1"))
        assert synod("budget", "set", "p1", "5").exit_code == Exit.DONE
        (asked,) = fakes.requests("SetBudget")
        assert (asked.scope, asked.window, asked.time_zone) == (pb.Attribution(), "lifetime", "UTC")
        assert (asked.unit, asked.limit_nano_usd, asked.hard) == ("nano_usd", 5 * 10**9, True)

    def test_an_amount_of_dollars_is_no_quota(self, synod: Command, fakes: FakeSystem) -> None:
        fakes.answer("cost-ledger", "GetBudget", pb.Budget(budget_id="p1", unit="tokens"))
        refused = synod("budget", "set", "p1", "0.5")
        assert (refused.exit_code, fakes.requests("SetBudget")) == (Exit.USAGE, [])
        assert "'0.5' is not a whole number" in refused.stderr

    def test_a_budget_is_suspended_for_a_reason_and_resumed(self, synod: Command, fakes: FakeSystem) -> None:
        fakes.answer("cost-ledger", "SuspendBudget", pb.Budget(budget_id="daily", suspended_for="a leaked key"))
        fakes.answer("cost-ledger", "ResumeBudget", pb.Budget(budget_id="daily", hard=True))
        stopped = synod("budget", "suspend", "daily", "--reason", "a leaked key")
        assert "suspended: a leaked key" in stopped.stdout, stopped.stderr
        (asked,) = fakes.requests("SuspendBudget")
        assert (asked.budget_id, asked.reason) == ("daily", "a leaked key")
        assert "suspended" not in synod("budget", "resume", "daily").stdout
        assert fakes.requests("ResumeBudget")[0].budget_id == "daily"

    def test_what_is_in_suspense_is_told_of_where_there_is_any(self, synod: Command, fakes: FakeSystem) -> None:
        quiet = pb.Budget(budget_id="daily", unit="nano_usd", limit=10**9, pending=3 * 10**8)
        fakes.answer("cost-ledger", "GetBudget", quiet)
        assert "suspense" not in synod("budget", "show", "daily").stdout
        fakes.answer("cost-ledger", "ListBudgets", pb.ListBudgetsResponse(budgets=[quiet, pb.Budget(suspense=7)]))
        shown = synod("budget", "list").stdout.splitlines()
        assert "in suspense" in shown[0]
        assert shown[1].split()[-4:] == ["$0.00", "$0.30", "$0.00", "$0.00"]

    def test_one_share_is_shown(self, synod: Command, fakes: FakeSystem) -> None:
        fakes.answer("cost-ledger", "GetBudget", pb.Budget(budget_id="talk", per="user_id", share="usr_1", posted=7))
        assert "each user_id (usr_1)" in synod("budget", "show", "talk", "--share", "usr_1").stdout
        assert fakes.requests("GetBudget")[0].share == "usr_1"

    def test_a_forecast_says_when_the_budget_runs_out_and_by_which_method(
        self, synod: Command, fakes: FakeSystem
    ) -> None:
        made = pb.BudgetForecast(
            budget=pb.Budget(budget_id="daily", limit=5 * 10**9, posted=10**9),
            burn_per_hour=5 * 10**8,
            exhausted_p50=at(NOON),
            trend_percent=-20,
            method="EWMA",
            history_hours=30,
        )
        fakes.answer("cost-ledger", "ForecastBudget", made)
        shown = synod("budget", "forecast", "daily").stdout
        for words in (
            "$1.00 of $5.00",
            "$0.50",
            "-20 %",
            "2026-11-21 12:00:00Z",
            "not in its window",
            "never",
            "30 hours; EWMA",
        ):
            assert words in shown


class TestSpend:
    def test_spend_is_limited_in_time(self, synod: Command, fakes: FakeSystem) -> None:
        fakes.answer("cost-ledger", "QuerySpend", pb.QuerySpendResponse())
        synod("spend", "--by", "day", "--since", "2026-11-01", "--until", "2026-11-21T12:00:00+01:00")
        (asked,) = fakes.requests("QuerySpend")
        assert getattr(asked, "from").ToDatetime(UTC) == datetime(2026, 11, 1, tzinfo=UTC)
        assert asked.until.ToDatetime(UTC) == datetime(2026, 11, 21, 11, tzinfo=UTC)

    def test_models_are_compared(self, synod: Command, fakes: FakeSystem) -> None:
        row = pb.ModelComparison(
            model="openai/gpt-5.5", calls=3, cost_nano_usd=3_000, errors_of_10000=125, latency_p95_ms=900
        )
        fakes.answer("cost-ledger", "CompareModels", pb.CompareModelsResponse(models=[row]))
        shown = synod("spend", "models").stdout
        assert "1.25 %" in shown
        assert "900" in shown

    def test_the_same_usage_is_priced_at_another_model(self, synod: Command, fakes: FakeSystem) -> None:
        found = pb.PriceUsageAtResponse(
            model="openai/gpt-5.5", calls=2, actual_nano_usd=3 * 10**9, other_nano_usd=10**9
        )
        fakes.answer("cost-ledger", "PriceUsageAt", found)
        assert "-$2.00" in synod("spend", "at", "openai/gpt-5.5", "--term", "processing=batch").stdout
        assert dict(fakes.requests("PriceUsageAt")[0].price_context) == {"processing": "batch"}


class TestExport:
    def export(self, synod: Command, fakes: FakeSystem, form: str, *charges: pb.ExportedCharge) -> str:
        pages = [pb.ExportSpendResponse(charges=[each]) for each in charges]
        fakes.answer("cost-ledger", "ExportSpend", pages)
        done = synod("spend", "export", "--format", form)
        assert done.exit_code == Exit.DONE, done.stderr
        assert f"{len(charges)} costs" in done.stderr
        return str(done.stdout)

    def test_csv_has_a_row_for_each_cost_with_exact_amounts(self, synod: Command, fakes: FakeSystem) -> None:
        first, second = csv.DictReader(
            self.export(synod, fakes, "csv", charge(), charge(id="r2", cost_nano_usd=1)).splitlines()
        )
        assert (first["cost_usd"], first["agent"], first["incurred_at"]) == (
            "0.0000015",
            "writer",
            "2026-11-21T12:00:00Z",
        )
        assert (second["id"], second["cost_usd"]) == ("r2", "0.000000001")

    def test_names_that_a_spreadsheet_would_calculate_are_quoted(self, synod: Command, fakes: FakeSystem) -> None:
        evil = pb.Attribution(agent='=HYPERLINK("http://x")', user_id="@me")
        (row,) = csv.DictReader(
            self.export(synod, fakes, "csv", charge(attribution=evil, cost_nano_usd=-5)).splitlines()
        )
        assert (row["agent"], row["user_id"]) == ('\'=HYPERLINK("http://x")', "'@me")
        assert row["cost_usd"] == "-0.000000005"

    @pytest.mark.parametrize("form", ["csv", "focus"])
    @pytest.mark.parametrize("broken", ["a\r", "a\n", "a\r\n", "\r", "\n", "\x0b", "a\u2028", "  "])
    def test_no_name_begins_a_row_or_a_formula(self, synod: Command, fakes: FakeSystem, form: str, broken: str) -> None:
        starts = ("=", "+", "-", "@", "\t")
        names = [f"{broken}{begins}HYPERLINK(1)" for begins in starts]
        evil = [charge(attribution=pb.Attribution(agent=name, project_id=name, model="x/y"), id=name) for name in names]
        text = self.export(synod, fakes, form, *evil)
        assert len(text.splitlines()) == len(list(csv.reader(text.split("\n")[:-1]))) == 1 + len(names)
        cells = [cell for row in csv.DictReader(text.splitlines()) for cell in row.values()]
        assert sum("HYPERLINK" in cell for cell in cells) >= 3 * len(names)
        assert not any(cell.lstrip().startswith(starts) or cell.startswith(starts) for cell in cells)
        assert not any(line.startswith(starts) for line in text.splitlines())

    def test_focus_has_its_columns_and_the_rest_as_tags(self, synod: Command, fakes: FakeSystem) -> None:
        (row,) = csv.DictReader(self.export(synod, fakes, "focus", charge(revision=1)).splitlines())
        assert (row["BilledCost"], row["BillingCurrency"], row["ProviderName"]) == ("0.0000015", "USD", "openai")
        assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
        assert (row["ConsumedQuantity"], row["PricingUnit"], row["SubAccountId"]) == ("15", "Tokens", "p1")
        tags = {"synod/agent": "writer", "synod/model": "openai/gpt-5.5", "synod/project_id": "p1"}
        assert json.loads(row["Tags"]) == tags

    def test_tags_are_in_every_format(self, synod: Command, fakes: FakeSystem) -> None:
        tagged = charge(attribution=pb.Attribution(model="a/b", tags={"team": "search", "feature": "chat"}))
        (plain,) = csv.DictReader(self.export(synod, fakes, "csv", tagged).splitlines())
        (focus,) = csv.DictReader(self.export(synod, fakes, "focus", tagged).splitlines())
        words = {"feature": "chat", "team": "search"}
        assert json.loads(plain["tags"]) == words
        assert json.loads(focus["Tags"]) == {"synod/model": "a/b", **words}
        assert json.loads(self.export(synod, fakes, "json", tagged))["attribution"]["tags"] == words

    def test_costs_are_chosen_by_tags(self, synod: Command, fakes: FakeSystem) -> None:
        fakes.answer("cost-ledger", "QuerySpend", pb.QuerySpendResponse())
        fakes.answer("cost-ledger", "ExportSpend", [pb.ExportSpendResponse()])
        for words in (("spend",), ("spend", "export")):
            assert synod(*words, "--tag", "team=search", "--tag", "rule=a=b").exit_code == Exit.DONE
        for method in ("QuerySpend", "ExportSpend"):
            (request,) = fakes.requests(method)
            assert dict(request.filter.tags) == {"team": "search", "rule": "a=b"}

    def test_focus_has_every_mandatory_column_of_the_specification_and_marks_its_own(self) -> None:
        row = focus_row(charge(attribution=pb.Attribution(tenant_id="acme")))
        assert set(row) >= FOCUS_MANDATORY
        assert {name for name in set(row) - FOCUS_MANDATORY if not name.startswith("x_")} <= FOCUS_OTHERS
        assert {name for name in FOCUS_MANDATORY if row[name] == ""} == {"BillingAccountName", "ChargeClass"}

    def test_a_corrected_charge_is_no_correction_of_its_own(self) -> None:
        row = focus_row(charge(revision=2))
        assert (row["ChargeClass"], row["x_Revision"]) == ("", 2)

    def test_terms_are_of_the_price_and_not_of_the_sku(self) -> None:
        row = focus_row(charge(price_context="processing=batch"))
        assert (row["SkuId"], row["SkuPriceId"]) == ("openai/gpt-5.5", "openai/gpt-5.5 processing=batch")

    def test_a_billing_period_ends_with_its_month_at_the_end_of_a_year(self) -> None:
        december = charge(incurred_at=at(datetime(2026, 12, 31, 23, 59, tzinfo=UTC)))
        assert focus_row(december)["BillingPeriodEnd"] == "2027-01-01T00:00:00Z"

    def test_the_list_cost_is_by_the_published_price_and_the_others_are_what_is_owed(self) -> None:
        row = focus_row(charge(list_cost_nano_usd=2_000))
        owed = {row[name] for name in ("BilledCost", "ContractedCost", "EffectiveCost")}
        assert (owed, row["ListCost"]) == ({"0.0000015"}, "0.000002")

    def test_json_is_one_object_a_line(self, synod: Command, fakes: FakeSystem) -> None:
        lines = self.export(synod, fakes, "json", charge(), charge(id="r2")).splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["r1", "r2"]

    def test_a_file_is_written(self, synod: Command, fakes: FakeSystem, tmp_path: Path) -> None:
        fakes.answer("cost-ledger", "ExportSpend", [pb.ExportSpendResponse(charges=[charge()])])
        synod("spend", "export", "--file", str(tmp_path / "out.csv"))
        assert len((tmp_path / "out.csv").read_text().splitlines()) == 2

    @pytest.mark.parametrize(
        ("nano", "text"), [(0, "0"), (1, "0.000000001"), (10**9, "1"), (-1_500_000_000, "-1.5"), (10 * 10**9, "10")]
    )
    def test_an_amount_is_an_exact_decimal(self, nano: int, text: str) -> None:
        assert decimal_usd(nano) == text


HEADER = "model,since,until,amount_usd\n"
JSON = '{"model": "x/y", "since": "2026-10-01", "until": "2026-11-01", "amount_usd": '


class TestInvoices:
    ANSWER = pb.Reconciliation(
        lines=[pb.Reconciliation.Line(ledger_nano_usd=10**9, difference_nano_usd=10**8)], difference_nano_usd=10**8
    )

    @pytest.mark.parametrize(
        "text",
        [
            "model,since,until,amount_usd\nopenai/gpt-5.5,2026-10-01,2026-11-01,1.10\n",
            '{"model": "openai/gpt-5.5", "since": "2026-10-01", "until": "2026-11-01", "amount_usd": "1.10"}\n',
        ],
    )
    def test_an_invoice_is_read_from_csv_and_json_lines(
        self, synod: Command, fakes: FakeSystem, tmp_path: Path, text: str
    ) -> None:
        fakes.answer("cost-ledger", "ImportInvoice", self.ANSWER)
        (tmp_path / "invoice").write_text(text)
        done = synod("spend", "reconcile", str(tmp_path / "invoice"), "--provider", "openai", "--id", "4711")
        assert done.exit_code == Exit.NOT_TRUE
        assert "Difference $0.10" in done.stdout
        assert "suspense" not in done.stdout
        (asked,) = fakes.requests("ImportInvoice")
        (line,) = asked.lines
        assert (line.model, line.amount_nano_usd, asked.invoice_id) == ("openai/gpt-5.5", 1_100_000_000, "4711")
        assert line.until.ToDatetime(UTC) == datetime(2026, 11, 1, tzinfo=UTC)

    def test_a_credit_is_an_amount_below_zero_and_a_correction_names_what_it_replaces(
        self, synod: Command, fakes: FakeSystem, tmp_path: Path
    ) -> None:
        fakes.answer("cost-ledger", "ImportInvoice", pb.Reconciliation())
        (tmp_path / "invoice").write_text("since,until,amount_usd\n2026-10-01,2026-11-01,-0.25\n")
        arguments = ("--provider", "openai", "--id", "4711a", "--replaces", "4711")
        assert synod("spend", "reconcile", str(tmp_path / "invoice"), *arguments).exit_code == Exit.DONE
        (asked,) = fakes.requests("ImportInvoice")
        assert (asked.replaces, asked.lines[0].amount_nano_usd) == ("4711", -250_000_000)

    def test_that_a_provider_is_right_is_said_by_an_option(
        self, synod: Command, fakes: FakeSystem, tmp_path: Path
    ) -> None:
        fakes.answer("cost-ledger", "ImportInvoice", pb.Reconciliation())
        (tmp_path / "invoice").write_text("since,until,amount_usd\n2026-10-01,2026-11-01,1\n")
        arguments = ("--provider", "acme", "--id", "4711", "--own-provider")
        assert synod("spend", "reconcile", str(tmp_path / "invoice"), *arguments).exit_code == Exit.DONE
        assert fakes.requests("ImportInvoice")[0].own_provider

    def test_the_help_says_that_the_end_of_a_line_is_not_in_it(self, synod: Command) -> None:
        told = " ".join(synod("spend", "reconcile", "--help").stdout.replace("│", " ").split())
        assert "from since on and before until" in told

    def test_holds_in_suspense_are_listed_and_ended(self, synod: Command, fakes: FakeSystem) -> None:
        doubtful = pb.Reservation(
            reservation_id="req_1:1",
            model="openai/gpt-5.5",
            attribution=pb.Attribution(agent="writer", run_id="run_1"),
            reserved_nano_usd=12_300_000,
            quantities=[pb.Quantity(unit="calls", quantity=1)],
            reserved_at=at(NOON),
        )
        tool = pb.Reservation(
            reservation_id="req_2",
            attribution=pb.Attribution(tool="sql"),
            quantities=[pb.Quantity(unit="tool_ms", quantity=30_000), pb.Quantity(unit="calls", quantity=1)],
        )
        fakes.answer(
            "cost-ledger",
            "ListSuspense",
            pb.ListSuspenseResponse(reservations=[doubtful], next_page_token="more"),
            pb.ListSuspenseResponse(reservations=[tool]),
        )
        first, second = synod("spend", "suspense").stdout.splitlines()[1:]
        assert first.split() == ["req_1:1", "2026-11-21", "12:00:00Z", "openai/gpt-5.5", "writer", "run_1", "$0.0123"]
        assert second.split() == ["req_2", "sql", "30,000", "tool_ms,", "1", "calls"]
        assert [asked.page_token for asked in fakes.requests("ListSuspense")] == ["", "more"]

        fakes.answer("cost-ledger", "Release", pb.Reservation(reservation_id="req_1:1"))
        assert synod("spend", "release", "req_1:1").exit_code == Exit.USAGE
        assert synod("spend", "release", "req_1:1", "--reason", "not in its list").stdout == "req_1:1 is released\n"
        (asked,) = fakes.requests("Release")
        assert (asked.reservation_id, asked.reason) == ("req_1:1", "not in its list")

    @pytest.mark.parametrize(
        ("amount", "settled", "exit_code", "is_free"),
        [
            ("0.0123", 12_300_000, Exit.DONE, False),
            ("0", 0, Exit.DONE, True),
            ("0.0123", 7_000_000, Exit.NOT_TRUE, False),
        ],
    )
    def test_what_was_billed_is_settled_by_hand_once(
        self, synod: Command, fakes: FakeSystem, amount: str, settled: int, exit_code: Exit, is_free: bool
    ) -> None:
        answer = pb.Reservation(reservation_id="req_1", state=pb.RESERVATION_STATE_SETTLED, settled_nano_usd=settled)
        fakes.answer("cost-ledger", "Settle", answer)
        done = synod("spend", "settle", "req_1", amount)
        assert (done.exit_code, f"req_1 is settled at {format_usd(settled)}\n") == (exit_code, done.stdout)
        assert ("settled before" in done.stderr) == (exit_code is Exit.NOT_TRUE)
        (asked,) = fakes.requests("Settle")
        assert (asked.free_of_charge, asked.usage_source) == (is_free, "provider_final")
        assert asked.amount_nano_usd == (0 if is_free else 12_300_000)

    @pytest.mark.parametrize("amount", ["-1", "much", ""])
    def test_what_is_no_amount_settles_nothing(self, synod: Command, fakes: FakeSystem, amount: str) -> None:
        assert synod("spend", "settle", "req_1", amount).exit_code == Exit.USAGE
        assert fakes.requests("Settle") == []

    def test_a_final_invoice_tells_what_it_cleared(self, synod: Command, fakes: FakeSystem, tmp_path: Path) -> None:
        cleared = pb.Reconciliation(
            settled_from_suspense_nano_usd=5_000_000, settled_from_suspense=2, released_from_suspense=1
        )
        fakes.answer("cost-ledger", "ImportInvoice", cleared)
        (tmp_path / "invoice").write_text("since,until,amount_usd\n2026-10-01,2026-11-01,1.1\n")
        arguments = ("--provider", "openai", "--id", "4711", "--final")
        done = synod("spend", "reconcile", str(tmp_path / "invoice"), *arguments)
        assert fakes.requests("ImportInvoice")[0].clear_suspense
        assert "from suspense 2 settled ($0.005), 1 released" in " ".join(done.stdout.split())

    def test_an_invoice_that_was_imported_before_is_told_as_such_with_what_clears_the_rest(
        self, synod: Command, fakes: FakeSystem, tmp_path: Path
    ) -> None:
        fakes.answer("cost-ledger", "ImportInvoice", pb.Reconciliation(was_imported=True, in_suspense=3))
        (tmp_path / "invoice").write_text("since,until,amount_usd\n2026-10-01,2026-11-01,1.1\n")
        done = synod("spend", "reconcile", str(tmp_path / "invoice"), "--provider", "openai", "--id", "4711", "--final")
        assert done.exit_code == Exit.DONE
        assert "4711 was imported before; this is what was posted then." in done.stderr
        assert "by now: 3; --id NEW --replaces 4711 --final clears them" in done.stderr

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("model,since,until\nx/y,2026-10-01,2026-11-01\n", "line 1: has no amount_usd; the columns are"),
            (f"{HEADER}x/y,2026-10-01,2026-11-01,\n", "line 2: has no amount_usd"),
            (f"{HEADER}x/y,October,2026-11-01,1\n", "line 2, since: 'October' is not a day"),
            (
                f"{HEADER}x/y,7d,2026-11-01,1\n",
                "line 2, since: '7d' is not a day (2026-11-01) or a moment (2026-11-01T08:00Z)",
            ),
            (f"{HEADER}x/y,2026-10-01,0m,1\n", "line 2, until: '0m' is not a day"),
            (f"{HEADER}x/y,2026-10-01,2026-11-01,1 EUR\n", "line 2, amount_usd: '1 EUR' is not an amount"),
            (f"{HEADER}x/y,2026-10-01,2026-11-01,(1.00)\n", "line 2, amount_usd: '(1.00)' is not an amount"),
            (f"{HEADER}x/y,2026-10-01,2026-11-01,1,234.50\n", "has 5 cells for 4 columns; quote what has a comma"),
            ("since,until,amount_usd,model\n2026-10-01,2026-11-01,1\n", "line 2: has 3 cells for 4 columns"),
            ("Model,since,until,amount_usd\n", "unknown column 'Model'; the columns are since, until, amount_usd"),
            ("model;since;until;amount_usd\n", "unknown column 'model;since;until;amount_usd'"),
            ("since,until,amount_usd,amount_usd\n", "line 1: has the column amount_usd 2 times"),
            ("since,until,amount_usd,currency\n2026-10-01,2026-11-01,1,EUR\n", "currency: is 'EUR', and the ledger"),
            (f"{HEADER}x/y ,2026-10-01,2026-11-01,1\n", "line 2, model: is 'x/y '"),
            (f"{HEADER}x/y\0,2026-10-01,2026-11-01,1\n", "line 2, model: is 'x/y\\x00'"),
            (f'{HEADER}"x/y,2026-10-01,2026-11-01,1\n', "line 2: is no CSV: unexpected end of data"),
            (f"{HEADER}{'x' * 200_000},2026-10-01,2026-11-01,1\n", "line 2: is no CSV: field larger than"),
            (HEADER, "has no lines"),
            ("", "line 1: has no since"),
            ('{"since": \n', "line 1: is no JSON"),
            ('{"since":' * 20_000, "line 1: is no JSON"),
            ('[{"since": "2026-10-01", "until": "2026-11-01", "amount_usd": 1}]\n', "line 1: is no JSON object"),
            ('{"since": "1", "since": "2", "until": "3", "amount_usd": 1}\n', "has the column since 2 times"),
            ('{"model": null, "since": "1", "until": "3", "amount_usd": 1}\n', "line 1, model: is null; leave it out"),
            ('\n{"since": ["1"], "until": "3", "amount_usd": 1}\n', "line 2, since: is neither text nor a number"),
            ('{"since": "2026-10-01", "until": "2026-11-01", "amount_usd": NaN}\n', "amount_usd: 'NaN' is not an"),
        ],
        ids=lambda value: value[:40],
    )
    def test_a_wrong_file_is_refused_with_its_line_and_column(
        self, synod: Command, fakes: FakeSystem, tmp_path: Path, text: str, words: str
    ) -> None:
        path = tmp_path / "i"
        path.write_bytes(text.encode())
        refused = synod("spend", "reconcile", str(path), "--provider", "openai", "--id", "4711")
        assert refused.exit_code == Exit.USAGE
        assert not fakes.requests("ImportInvoice")
        told = " ".join(refused.stderr.replace("│", " ").split())
        assert words in told
        assert "Traceback" not in told

    @pytest.mark.parametrize(
        ("data", "nano_usd"),
        [
            (f'\ufeff{HEADER}x/y,2026-10-01,2026-11-01,"1,234.50"\r\n\r\n'.encode(), 1_234_500_000_000),
            (b"currency,amount_usd,until,since,model\nUSD,2,2026-11-01,2026-10-01,x/y\n", 2 * 10**9),
            (f"\ufeff{JSON}12345678.123456789}}\n".encode(), 12_345_678_123_456_789),
            (f"{JSON}-3}}\n\n".encode(), -3 * 10**9),
        ],
        ids=["mark of a spreadsheet", "any order", "digits of a number", "credit"],
    )
    def test_an_amount_is_read_with_all_its_digits_and_for_its_model(
        self, synod: Command, fakes: FakeSystem, tmp_path: Path, data: bytes, nano_usd: int
    ) -> None:
        fakes.answer("cost-ledger", "ImportInvoice", pb.Reconciliation())
        (tmp_path / "invoice").write_bytes(data)
        done = synod("spend", "reconcile", str(tmp_path / "invoice"), "--provider", "x", "--id", "4711")
        assert done.exit_code == Exit.DONE, done.stderr
        (line,) = fakes.requests("ImportInvoice")[0].lines
        assert (line.model, line.amount_nano_usd) == ("x/y", nano_usd)

    def test_a_file_of_other_text_is_refused(self, synod: Command, fakes: FakeSystem, tmp_path: Path) -> None:
        (tmp_path / "invoice").write_bytes(HEADER.encode("utf-16"))
        refused = synod("spend", "reconcile", str(tmp_path / "invoice"), "--provider", "x", "--id", "4711")
        assert refused.exit_code == Exit.USAGE
        assert "is not UTF-8 text; save it as CSV UTF-8" in " ".join(refused.stderr.replace("│", " ").split())


class TestPrices:
    def test_prices_are_listed_over_all_pages_by_name(self, synod: Command, fakes: FakeSystem) -> None:
        pages = [
            pb.ListPricesResponse(
                prices=[pb.Price(provider="openai", model="gpt-5.5", input_pico_usd=5_000_000)], next_page_token="2"
            ),
            pb.ListPricesResponse(prices=[pb.Price(provider="openai", model="tts-1")]),
        ]
        fakes.answer("cost-ledger", "ListPrices", lambda request: pages[bool(request.page_token)])
        shown = synod("prices", "list", "--match", "gpt").stdout
        assert "openai/gpt-5.5" in shown
        assert "$5.00" in shown
        assert "tts-1" not in shown

    def test_costs_are_rerated_only_with_a_reason(self, synod: Command, fakes: FakeSystem) -> None:
        tried = pb.RerateChargesResponse(charges=9, changed=2, difference_nano_usd=10**9, dry_run=True)
        done = pb.RerateChargesResponse(charges=9, changed=2, difference_nano_usd=10**9)
        fakes.answer("cost-ledger", "RerateCharges", tried, done)
        assert "2 of 9 costs would change" in synod("prices", "rerate", "--unpriced").stdout
        assert "2 of 9 costs changed: $1.00" in synod("prices", "rerate", "--reason", "was missing").stdout
        first, second = fakes.requests("RerateCharges")
        assert (first.dry_run, first.unpriced_only, second.dry_run, second.reason) == (True, True, False, "was missing")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["spend", "--since", "yesterday"], "'yesterday' is not a day (2026-11-01)"),
        *(
            (
                [*words, "--since", "2026-12-01", "--until", "2026-11-01"],
                "'2026-11-01' is not after --since '2026-12-01'",
            )
            for words in (
                ["spend"],
                ["spend", "export"],
                ["spend", "models"],
                ["spend", "at", "openai/gpt-5.5"],
                ["prices", "rerate"],
            )
        ),
        (["spend", "--since", "1h", "--until", "2h"], "'2h' is not after --since '1h'"),
        (["spend", "at", "gpt-5.5"], "'gpt-5.5' is not provider/model"),
        (["spend", "at", "openai/gpt-5.5", "--term", "batch"], "'batch' is not NAME=VALUE"),
        (["budget", "set", "a", "5", "--rolling", "1h"], "--window rolling and --rolling LENGTH belong together"),
        (["budget", "set", "a", "5", "--window", "rolling", "--rolling", "1 week"], "'1 week' is not a length of time"),
        (["spend", "--tag", "team=a", "--tag", "team=b"], "'team' is given as 'a' and as 'b'"),
        (["spend", "--tag", "team"], "'team' is not NAME=VALUE, such as team=search"),
        (["budget", "set", "a", "0.5", "--unit", "tokens"], "'0.5' is not a whole number"),
        (["prices", "set", "qwen3", "1", "1"], "'qwen3' is not provider/model"),
        (["prices", "set", "a/b", "0.0000001", "2"], "'0.0000001' is finer than a price is kept"),
        (["prices", "set", "a/b", "2", "0.1234567"], "'0.1234567' is finer than a price is kept"),
        (["prices", "set", "a/b", "-1", "2"], "'-1' is less than nothing; give 0 or more"),
        (["budget", "set", "p1", "-5"], "'-5' is less than nothing; give 0 or more"),
        (["budget", "set", "p1", "-5", "--unit", "tokens"], "'-5' is less than nothing; give 0 or more"),
        (["budget", "set", "p1", "5", "--modle", "x/y"], "No such option: --modle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_names_the_value_and_what_is_right(
    synod: Command, fakes: FakeSystem, arguments: list[str], words: str
) -> None:
    refused = synod(*arguments)
    assert refused.exit_code == Exit.USAGE
    assert words in " ".join(refused.stderr.replace("│", " ").split())
