"""The report: what is paired with what, and every kind of verdict."""

import dataclasses
import math
import re
import statistics

import numpy as np
import pytest
import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.analysis import charges, plots, report, tables
from baselines.analysis.conditions import conditions
from baselines.analysis.headline import headline
from baselines.analysis.plots import metric_over_rst
from baselines.analysis.verdict import verdict
from baselines.cli import console as screen
from baselines.experiment import tuning
from baselines.experiment.comparison import Comparison
from baselines.methods.names import DEFAULT, find
from baselines.training.results import Run, TrainingResult
from tests.support.comparisons import CURVES, comparison, run
from tests.support.profiles import profile_of
from tests.support.user_files import SCHEDULE


def test_rows_pair_by_seed_and_count_a_target_of_its_own_for_each() -> None:
    rows = {row.method: row for row in tables.rows(comparison(CURVES))}
    assert rows["constant"].rst_to_target == (4.0, 4.0, 4.0)
    assert rows["decayed"].rst_to_target == (3.0, 3.0, 3.0)
    assert rows["lawa"].rst_to_target == (2.0, 2.0, 2.0)
    assert rows["lawa"].savings["constant"] == (0.5, 0.5, 0.5)
    assert rows["lawa"].savings["decayed"] == pytest.approx((1 / 3,) * 3)
    assert rows["constant"].savings["decayed"] == pytest.approx((-1 / 3,) * 3)
    assert rows["lawa"].finals == (1.5, 1.6, 1.7)
    assert rows["lawa"].tests == (1.75, 1.85, 1.95)
    assert tables.metric_cell(rows["lawa"].finals).startswith("1.6000 ± 0.24")
    assert tables.target_cell(rows["lawa"]) == "2.00 s [2.00 s, 2.00 s]"
    assert tables.saving_cell(rows["lawa"], "constant") == "50% ± 0%"
    assert tables.saving_cell(rows["constant"], "constant") == "·"


def test_the_verdict_says_what_wins_and_what_loses() -> None:
    against_constant, against_decayed = verdict(comparison(CURVES))
    better = "On the test part LAWA of the constant rate ends BETTER than constant rate"
    assert better in against_constant
    assert "1.8500 against 2.3500 nats per image" in against_constant
    assert "reached the target with 50% less RST" in against_constant
    assert "LAWA of the constant rate ends WORSE than fully decayed rate" in against_decayed
    # One step of the grid earlier: no more than what the grid can tell.
    assert "No saving of RST to the target is shown" in against_decayed
    assert "[-0%, +67%]" in against_decayed or "[+0%, +67%]" in against_decayed


def test_the_end_is_judged_on_the_test_part_and_the_target_on_the_validation_part() -> None:
    made = comparison(CURVES)
    ends = {"constant": [1.0, 1.1, 1.0], "decayed": [1.0, 1.0, 1.0], "lawa": [1.5, 1.5, 1.6]}
    result = TrainingResult(
        tuple(dataclasses.replace(r, test=ends[r.method][r.seed]) for r in made.runs), 4.0, 4.1, 0.0
    )
    made = dataclasses.replace(made, trainings=(result,))
    sentence = verdict(made)[0]
    assert "On the test part LAWA of the constant rate ends WORSE than constant rate" in sentence
    assert "reached the target with 50% less RST" in sentence
    _, constant, _, lawa = tables.ranking([made])
    assert (constant[1], lawa[1]) == ("1.0333 ± 0.1434 (2)", "1.5333 ± 0.1434 (3)")
    assert tables.columns(made)["test_metric"] == [
        *ends["constant"],
        *ends["decayed"],
        *ends["lawa"],
    ]
    assert tables.columns(made)["final_metric"][:3] == [2.0, 2.1, 2.2]
    assert "end of the budget is judged on the test part" in conditions(made)


def test_where_the_test_part_was_not_read_the_validation_part_judges() -> None:
    made = comparison(CURVES)
    made = dataclasses.replace(made, plan=dataclasses.replace(made.plan, read_test=False))
    assert verdict(made)[0].startswith("On the validation part LAWA")
    assert "1.6000 against 2.1000" in verdict(made)[0]
    target = "RST to target (median, 75% interval)"
    assert tables.results(made)[0] == [
        "rank",
        "method",
        "final validation nats per image",
        target,
    ]
    assert "test_metric" not in tables.columns(made)
    assert "test part" not in report.markdown(made)
    assert tables.ranking([made])[3][1] == "1.6000 ± 0.2484 (2)"


def test_the_verdict_says_when_nothing_is_shown() -> None:
    curves = {
        "constant": [[3.0, 2.0], [3.0, 2.0], [3.0, 2.0]],
        "lawa": [[2.5, 1.9], [1.9, 2.1], [3.0, 2.0]],
    }
    (sentence,) = verdict(comparison(curves))
    assert "no difference shown at the end" in sentence
    assert "No saving of RST to the target is shown" in sentence


def test_a_later_arrival_is_said_to_cost_more() -> None:
    curves = {
        "constant": [[4.0, 3.0, 2.0, 2.0]] * 3,
        "lawa": [[4.0, 3.0, 2.5, 1.9]] * 3,
        "decayed": [[4.0, 1.0, 1.0, 1.0]] * 3,
    }
    against_constant, against_decayed = verdict(comparison(curves))
    assert "No saving of RST to the target is shown" in against_constant
    assert "with 100% MORE RST" in against_decayed


def test_one_seed_bears_no_conclusion() -> None:
    sentences = verdict(comparison({name: curve[:1] for name, curve in CURVES.items()}))
    assert all(sentence.count("one seed cannot show a difference") == 2 for sentence in sentences)


def test_a_miss_is_never_and_no_saving_is_claimed_of_it() -> None:
    curves = {**CURVES, "lawa": [[3.0, 2.9, 2.8, 2.7], [3.1, 2.0, 1.8, 1.6], [3.0, 2.1, 1.8, 1.7]]}
    made = comparison(curves)
    row = next(row for row in tables.rows(made) if row.method == "lawa")
    assert row.rst_to_target[0] == math.inf
    assert tables.target_cell(row) == "2.00 s [2.00 s, never] (1 of 3 missed)"
    assert tables.saving_cell(row, "constant") == "reached 2/3"
    sentence = verdict(made)[0]
    assert "With 2 of 3 seeds both reached the target, so no saving is claimed" in sentence
    table = tables.columns(made)
    at = table["method"].index("lawa")
    assert table["rst_to_target_seconds"][at : at + 3] == ["never", 2.0, 2.0]


def test_a_failed_run_is_shown_as_a_miss() -> None:
    made = comparison(CURVES)
    runs = tuple(
        run("lawa", 1, [3.1, math.nan], "no finite number")
        if (r.method, r.seed) == ("lawa", 1)
        else r
        for r in made.runs
    )
    made = Comparison(made.plan, made.profile, (TrainingResult(runs, 4.0, 4.1, 0.0),))
    row = next(row for row in tables.rows(made) if row.method == "lawa")
    assert tables.metric_cell(row.finals).endswith("(1 of 3 failed)")
    assert tables.metric_cell(row.tests).endswith("(1 of 3 failed)")
    assert row.rst_to_target[1] == math.inf
    assert "a run failed" in verdict(made)[0]
    assert "(1 of 3 failed)" in report.markdown(made)


def killed(method: str, seed: int) -> Run:
    """What is known of a run whose process was killed before it measured anything."""
    return Run(method, seed, (), (), {}, 0.0, "it was killed", share=1.0)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.sets(st.tuples(st.sampled_from(sorted(CURVES)), st.integers(0, 2))))
def test_whichever_runs_were_killed_all_is_shown_and_they_are_marked(
    gone: set[tuple[str, int]],
) -> None:
    made = comparison(CURVES)
    runs = [
        killed(r.method, r.seed) if (r.method, r.seed) in gone else r
        for r in sorted(made.runs, key=lambda each: each.seed)
    ]
    made = Comparison(
        made.plan,
        profile_of([{"train_step": 0.1}, {"train_step": 0.11}], made.plan.signature),
        tuple(TrainingResult((r,), 4.0, 4.1, 0.0, r.failure) for r in runs),
    )
    note = report.markdown(made)
    screen.show(made)
    for figure in plots.figures(made).values():
        figure.canvas.draw()
    for row in charges.totals(made)[1:]:
        (method,) = (name for name in CURVES if find(name).title == row[0])
        missing = sum(method == name for name, _ in gone)
        kept = [4.0 + seed for seed in range(3) if (method, seed) not in gone]
        mean = f"{statistics.fmean(kept):.3f}" if kept else "no run ended"
        mark = f" ({missing} of 3 failed)" if missing and kept else ""
        assert row[1:] == [mean + mark, "3.000" if kept else mean, "5.000" if kept else mean]
    lost = sum(name == "constant" for name, _ in gone)
    assert (f"With {lost} of 3 seeds the constant rate failed" in note) == bool(lost)
    failure = str(made.failure)
    assert len(made.cut_off) == len(gone)
    if len(gone) == len(made.runs):
        assert failure.startswith("every run failed under 4 s: ")
        assert "No run ended" in note
    else:
        assert "give a run's seconds to ±" in note
        start = f"{len(gone)} of 9 runs under 4 s did not end (" if gone else "None"
        assert failure.startswith(start)


def test_without_the_constant_rate_there_is_no_target() -> None:
    made = comparison({name: CURVES[name] for name in ("decayed", "lawa")})
    assert {tables.target_cell(row) for row in tables.rows(made)} == {"never (3 of 3 missed)"}
    assert "no saving is claimed" in verdict(made)[0]
    assert "Without the constant rate there is no target" in conditions(made)


def test_lawa_at_half_time_is_held_against_a_run_that_was_annealed_there() -> None:
    # After 2 of 4 s LAWA is at 1.9, 2.0 and 2.1; what it comes to later must not count.
    for annealed, word in (
        ([[1.0, 1.2], [1.0, 1.3], [1.0, 1.45]], "WORSE than"),
        ([[9.0, 2.9], [9.0, 3.0], [9.0, 3.2]], "BETTER than"),
        ([[9.0, 1.9], [9.0, 2.1], [9.0, 2.0]], "not shown to differ from"),
    ):
        curves = {"lawa": CURVES["lawa"], "annealed-50": annealed}
        (sentence,) = verdict(comparison(curves))
        # The test part is read only at the end, so in the middle there is no other than validation.
        at = "After 2 s, on the validation part, LAWA of the constant rate"
        assert f"{at} is {word} a run fully decayed" in sentence
        assert "2.0000 against" in sentence


def test_totals_are_means_over_seeds() -> None:
    head, constant, *_ = charges.totals(comparison(CURVES))
    assert head == ["method", "algoperf, s", "ntng, s", "mlperf, s"]
    assert constant == ["constant rate", "5.000", "3.000", "5.000"]


def test_the_ranking_moves_with_the_budget() -> None:
    worse = {**CURVES, "lawa": [[9.0], [9.0], [math.nan]]}
    failed = comparison(worse)
    runs = tuple(
        run("lawa", 2, [math.nan], "diverged") if r.final != r.final else r for r in failed.runs
    )
    failed = Comparison(failed.plan, failed.profile, (TrainingResult(runs, 4.0, 4.1, 0.0),))
    head, constant, decayed, lawa = tables.ranking([comparison(CURVES), failed])
    assert head == ["method", "4 s", "4 s"]
    assert [cell.rpartition(" ")[2] for cell in constant[1:]] == ["(3)", "(2)"]
    assert [cell.rpartition(" ")[2] for cell in decayed[1:]] == ["(1)", "(1)"]
    assert [cell.rpartition(" ")[2] for cell in lawa[1:]] == ["(2)", "(-)"]
    assert "(1 of 3 failed)" in lawa[2]


def test_without_a_pair_nothing_is_claimed() -> None:
    assert verdict(comparison({"constant": CURVES["constant"]})) == [
        "No two methods of a claim were compared, so nothing is claimed."
    ]


def test_the_markdown_names_seeds_budget_and_uncertainty() -> None:
    note = report.markdown(comparison(CURVES))
    assert "| rank | method | final test nats per image | RST to target (median, 75% int" in note
    cells = "| 1.8500 ± 0.2484 | 2.00 s [2.00 s, 2.00 s] |"
    assert f"| 2 | LAWA of the constant rate {cells}" in note
    assert "| **1** | **fully decayed rate** | **1.3333 ± 0.1897** |" in note
    assert "| LAWA of the constant rate | 1.6000 ± 0.2484 | 5.000 | 3.000 | 5.000 |" in note
    assert "| LAWA of the constant rate | 50% ± 0% |" in note
    assert "4 s of RST each, 3 seeds" in note
    assert "95% t-intervals over them" in note
    assert "covers the true one 75% of the time" in note
    assert "known to 1 s" in note
    assert "Peak rate 0.1 for all, untuned. lawa: lawa.k=5, lawa.every=auto." in note


def spread(values: list[float], end: float) -> list[list[float]]:
    """A curve for each of three seeds, which end about this value."""
    return [[*values, end + step] for step in (-0.02, 0.0, 0.03)]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (
            {"constant": 2.0, "decayed": 1.0, "lawa": 1.5},
            [
                "fully decayed rate ends best, at 1.2533 nats per image: BETTER than all 2 others.",
                "LAWA of the constant rate LOSES at the end to the fully decayed rate, and beats "
                "the constant rate.",
            ],
        ),
        (
            {"constant": 2.0, "decayed": 1.5, "lawa": 1.0},
            ["LAWA of the constant rate ends best, at 1.2533 nats per image: BETTER than all 2 "],
        ),
        (
            {"constant": 2.0, "decayed": 2.0, "lawa": 2.0},
            [
                "constant rate has the best mean at the end, 2.2533 nats per image: no difference "
                "to any other is shown.",
                "LAWA of the constant rate and the constant rate and the fully decayed rate: no "
                "difference is shown at the end.",
            ],
        ),
        (
            {"constant": 1.0, "decayed": 1.0, "ema": 2.0, "swa": 2.0, "lawa": 2.0},
            [
                "constant rate has the best mean at the end, 1.2533 nats per image: no difference "
                "to the fully decayed rate is shown, and the 3 others end WORSE.",
                "LAWA of the constant rate LOSES at the end to the constant rate and the fully "
                "decayed rate; no difference to EMA of the constant rate and SWA of the constant "
                "rate is shown.",
            ],
        ),
    ],
)
def test_the_headline_follows_the_intervals(ends: dict[str, float], said: list[str]) -> None:
    curves = {name: spread([4.0, 3.0, 2.5], end) for name, end in ends.items()}
    # Seeds differ by chance, and not alike for all.
    for shift, seeds in enumerate(curves.values()):
        seeds[:] = [
            [*curve[:-1], seeds[(place + shift) % 3][-1]] for place, curve in enumerate(seeds)
        ]
    found = headline(comparison(curves))
    assert len(found) <= 3
    for line, start in zip(found, said, strict=False):
        assert line.startswith(start)


def test_the_headline_says_what_was_saved_or_lost_on_the_way() -> None:
    late = {"constant": [[4.0, 3.0, 2.0, 2.0]] * 3, "lawa": [[4.0, 3.0, 2.5, 1.9]] * 3}
    assert headline(comparison(late))[-1] == (
        "LAWA of the constant rate is not shown to save RST on the way to where the constant rate "
        "ends [-67%, +0%]."
    )
    latest = {"constant": [[2.0, 2.0, 2.0, 2.0]] * 3, "lawa": [[4.0, 3.0, 2.5, 1.9]] * 3}
    assert "LOSES time: it came" in headline(comparison(latest))[-1]
    assert "with 300% MORE RST" in headline(comparison(latest))[-1]
    missed = {**CURVES, "lawa": [[3.0, 2.9, 2.8, 2.7], *CURVES["lawa"][1:]]}
    assert "ends with 1 of 3 seeds, so no saving is claimed" in headline(comparison(missed))[-1]
    assert headline(comparison(CURVES))[-1] == (
        "LAWA of the constant rate came to where the constant rate ends with 50% less RST "
        "[+25%, +75%]."
    )


@pytest.mark.parametrize(("seeds", "word"), [(1, "One seed"), (2, "Two seeds")])
def test_too_few_seeds_show_nothing_and_are_told_to_be_five(seeds: int, word: str) -> None:
    made = comparison({name: curve[:seeds] for name, curve in CURVES.items()})
    few, mean = headline(made)
    assert few == f"{word} cannot show a difference; give five (--seeds 5)."
    assert mean.startswith("By the mean alone fully decayed rate ends best, at ")
    said = " ".join([*headline(made), *verdict(made)])
    assert not {"BETTER", "WORSE", "LOSES"} & {*re.findall("[A-Z]+", said)}
    assert ("later of the two medians" in tables.results(made)[0][-1]) == (seeds == 2)


def test_a_method_of_the_users_own_is_the_one_in_question(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCHEDULE.format("1.0"))
    _, about, saved = headline(comparison({**CURVES, str(file): CURVES["lawa"]}))
    assert about.startswith("mine LOSES at the end to the fully decayed rate, and beats")
    assert saved.startswith("mine came to where the constant rate ends with 50% less RST")


def test_a_failed_method_is_named_and_not_judged() -> None:
    made = comparison(CURVES)
    runs = tuple(
        run("decayed", 1, [3.1, math.nan], "diverged")
        if (r.method, r.seed) == ("decayed", 1)
        else r
        for r in made.runs
    )
    made = Comparison(made.plan, made.profile, (TrainingResult(runs, 4.0, 4.1, 0.0),))
    assert headline(made)[0] == (
        "LAWA of the constant rate ends best, at 1.8500 nats per image: BETTER than the constant "
        "rate; a run of the fully decayed rate FAILED."
    )
    assert [row[0] for row in tables.results(made)[1:]] == ["1", "2", "-"]


def test_settings_of_one_method_are_told_apart_in_its_titles() -> None:
    names = ("lawa", "lawa(k=10)", "lawa-decayed", "decayed+lawa(k=3,every=4)", "ema")
    titles = comparison(dict.fromkeys(names, CURVES["lawa"])).plan.titles
    assert list(titles.values()) == [
        "LAWA of the constant rate (k=5)",
        "LAWA (k=10) of the constant rate",
        "LAWA of the decayed rate (k=5, every=auto)",
        "LAWA (k=3, every=4) of the decayed rate",
        "EMA of the constant rate",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_cell_of_a_table_is_ever_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen, "console", rich.console.Console(width=width, markup=False))
    made = comparison(dict.fromkeys(DEFAULT, CURVES["lawa"]))
    screen.show(made)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines)
    for cell in ("LAWA of the constant rate", "1.8500 ± 0.2484", "4.00 s [4.00 s, 4.00 s]"):
        assert any(cell in line for line in lines)


def test_a_tuned_comparison_says_what_was_chosen_and_what_it_cost() -> None:
    made = comparison(CURVES)
    trials = tuning.trials(dataclasses.replace(made.plan, trials=2), 2)
    tried = [
        Comparison(
            plan,
            made.profile,
            (TrainingResult(tuple(run(m, 9, [3.0, end]) for m in CURVES), 8.0, 8.1, 0.0),),
        )
        for plan, end in zip(trials, (2.0, 1.0), strict=True)
    ]
    plan = tuning.winners(dataclasses.replace(made.plan, trials=2), tried)
    note = report.markdown(dataclasses.replace(made, plan=plan))
    chosen = trials[1].method("lawa")
    every = chosen.settings["lawa.every"]
    assert f"learning_rate={chosen.learning_rate:.4g}, lawa.every={every}" in note
    # Two trials of three methods; a run of two points was charged 2 s.
    assert "2 trial(s) a method" in note
    assert "12 s of RST that are charged to no run" in note
    assert "untuned" not in note
    own = dataclasses.replace(find("lawa").with_settings({"lawa.every": 7}), learning_rate=0.4)
    given = dataclasses.replace(made.plan, methods=(*made.plan.methods[:2], own))
    said = conditions(dataclasses.replace(made, plan=given))
    assert "Peak rates of their own: 0.1 for constant, 0.1 for decayed, 0.4 for lawa. " in said
    assert " lawa: lawa.k=5, lawa.every=7. " in said


def test_a_method_of_the_users_own_is_held_against_every_baseline(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCHEDULE.format("1.0"))
    made = comparison({"constant": CURVES["constant"], str(file): CURVES["lawa"]})
    (sentence,) = verdict(made)
    assert "On the test part mine ends BETTER than constant rate" in sentence
    assert "with 50% less RST" in sentence


def test_the_plot_has_a_line_a_method() -> None:
    figure = metric_over_rst(comparison(CURVES))
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    # As they end, from above; and what they are to reach.
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "constant rate",
        "LAWA of the constant rate",
        "fully decayed rate",
        "target, mean of the seeds",
    ]
    assert list(lines["target, mean of the seeds"].get_ydata()) == pytest.approx([2.1, 2.1])
    assert axes.get_xlim()[0] == pytest.approx(0.2 * 4)
    drawn = lines["LAWA of the constant rate"]
    assert list(drawn.get_xdata()) == [1, 2, 3, 4]
    assert list(drawn.get_ydata()) == pytest.approx(np.mean(CURVES["lawa"], axis=0))
    curves = [line for name, line in lines.items() if "rate" in name]
    assert len({str(line.get_linestyle()) for line in curves}) == 3
