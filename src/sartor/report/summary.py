# SPDX-License-Identifier: Apache-2.0
"""The numbers of a report as one JSON-able value: what `report.json` holds and the page prints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import PurePath

from sartor.report.effects import Effects, additive_effects, spans
from sartor.report.progress import Point, Question, progress, question
from sartor.report.reading import BASELINES, Json, Measured, Network, Record, mapping, number, texts
from sartor.trial import Trial

ROUGH = 0.9  # a Kendall tau below this makes a predictor's ranking too rough to be relied on


def summarise(record: Record) -> Json:
    """Return what was asked, what was found, and every number that the page shows."""
    asked = question(record)
    target = _target(record)
    first = _on_target(record, target)
    front, others, baselines = (first[part] for part in ("front", "beside_the_front", "baselines"))
    best = _recommended(record, front, target)
    points = progress(record.trials, asked)
    missing = _missing(record)
    return {
        "format": 1,
        "complete": not missing,
        "missing": missing,
        "asked": _asked(record, asked, target),
        "recommended": best,
        "why": record.why,
        "comparisons": _comparisons(best, baselines),
        "front": front,
        "beside_the_front": others,
        "baselines": baselines,
        "other_targets": [_on_target(record, name) for name in record.target_names[1:]],
        "good_on_all": _good_on_all(record),
        "latency_model": _latency_model(record),
        "training": _training(record),
        "search": _search(record, points),
        "effects": _all_effects(record, asked),
        "stages": _stages(record),
        "test_error_of_accuracy": _standard_error(record, best),
        "notes": [
            *_notes(record, front, baselines),
            *_behind(best, baselines),
            *_trainings([*front, *others], baselines),
        ],
    }


def _on_target(record: Record, target: str) -> Json:
    """Return the front of one target, what was verified beside it, and the baselines, as measured there."""
    listed = record.fronts.get(target)
    on_front = set(map(str, listed)) if isinstance(listed, list) else {one.name for one in record.front}
    verified = [*record.front, *record.others]
    front = sorted((_row(one, target) for one in verified if one.name in on_front), key=_by_latency)
    beside = sorted((_row(one, target) for one in verified if one.name not in on_front), key=_by_latency)
    for row in front:
        row["recommended"] = record.best is not None and row["id"] == record.best.arch.id
    return {
        "target": target,
        "asked": {"limit_ms": question(record, target).limit_ms, "target": target},
        "front": front,
        "beside_the_front": beside,
        "baselines": [_row(one, target) for one in record.baselines],
    }


def _good_on_all(record: Record) -> list[Json]:
    """Return the networks on the front over all targets: a row for each, with one measurement per target."""
    listed = record.fronts.get("all targets")
    names = list(map(str, listed)) if isinstance(listed, list) else []
    known = {one.name: one for one in record.front}
    return [
        {"name": name, "on": [_figures(one) | {"target": one.target} for one in known[name].targets]}
        for name in names
        if name in known
    ]


def _stages(record: Record) -> dict[str, float]:
    seconds = ((stage, number(value)) for stage, value in record.part("stages").items())
    return {stage: value for stage, value in seconds if value is not None}


def _target(record: Record) -> str:
    if record.target_names:
        return record.target_names[0]
    return next((one.target for network in record.front for one in network.targets), "")


def _fingerprint(record: Record) -> Json:
    return mapping(record.targets[0].get("fingerprint")) if record.targets else {}


def _asked(record: Record, asked: Question, target: str) -> Json:
    task, space, arguments = record.part("task"), record.part("space"), record.part("arguments")
    classes = task.get("classes")
    size = space.get("size")
    data = task.get("name") or task.get("source") or arguments.get("data")
    return {
        "data": _short_name(str(data or "unknown data")),
        "classes": len(classes) if isinstance(classes, list) else number(classes),
        "metric": str(task.get("metric_name") or "accuracy"),
        "target": target,
        "device": str(_fingerprint(record).get("processor") or ""),
        "limit_ms": asked.limit_ms,
        "quality": asked.quality,
        "objectives": _objectives(record),
        "space": str(space.get("name") or "space"),
        "space_size": size if isinstance(size, int) and not isinstance(size, bool) else None,
        "choices": len(record.space.choices) if record.space else 0,
        "created": str(record.run.get("created") or ""),
    }


def _objectives(record: Record) -> list[Json]:
    entries = record.run.get("objectives")
    found = []
    for one in map(mapping, entries if isinstance(entries, list) else []):
        bounds = {key: bound for key in ("at_most", "at_least") if (bound := number(one.get(key))) is not None}
        found.append({"name": str(one.get("name", "")), "goal": str(one.get("goal", "min")), **bounds})
    return found


def _short_name(source: str) -> str:
    """Return a source as it was named; of a long path, its last part."""
    return source if len(source) <= 40 else PurePath(source).name or source


def _row(network: Network, target: str) -> Json:
    measured = network.on(target)
    return {
        "name": network.name,
        "id": network.arch.id,
        "params": network.params,
        "macs": network.macs,
        "trained": network.trained,
        "steps": network.steps,
        "finetune_steps": network.finetune_steps,
        "training": network.training,
        "tokens_per_s": network.tokens_per_s,
        "recommended": False,
        **(_figures(measured) if measured else dict.fromkeys(FIELDS)),
    }


FIELDS = tuple(one.name for one in fields(Measured) if one.name != "target")


def _figures(measured: Measured) -> Json:
    figures = {name: getattr(measured, name) for name in FIELDS}
    return figures | {"notes": list(measured.notes), "limits": [list(limit) for limit in measured.limits]}


def _by_latency(row: Mapping[str, object]) -> tuple[float, str]:
    latency = number(row["latency_ms"])
    return (math.inf if latency is None else latency, str(row["name"]))


def _recommended(record: Record, front: Sequence[Json], target: str) -> Json | None:
    """Return the row of best/: the front's own where it is a copy of a member, so that figures agree."""
    if record.best is None:
        return None
    chosen = record.best.arch.id
    member = next((row for row in front if row["id"] == chosen), None)
    return member or _row(record.best, target) | {"name": chosen}


def _comparisons(best: Json | None, baselines: Iterable[Json]) -> list[Json]:
    """Compare the recommended network with each baseline: speed as a factor, accuracy in fractions."""
    found = []
    for row in baselines:
        if best is None or not best["latency_ms"] or row["latency_ms"] is None:
            continue
        known = best["test"] is not None and row["test"] is not None
        gain = best["test"] - row["test"] if known else None
        factor = row["latency_ms"] / best["latency_ms"]
        found.append({"name": row["name"], "times_faster": factor, "gain": gain})
    return found


def _latency_model(record: Record) -> Json | None:
    model = record.latency_model
    if not model:
        return None
    numbers = {key: number(model.get(key)) for key in ("samples", "held_out", "mape", "spearman", "kendall")}
    return numbers | {"method": str(model.get("method") or "")}


def _training(record: Record) -> Json | None:
    if not record.training:
        return None
    last = record.training[-1]
    keys = ("step", "loss", "samples_per_s", "seconds")
    return {key: last.get(key) for key in keys} | {"planned": number(record.part("plan").get("steps"))}


def _search(record: Record, points: Sequence[Point]) -> Json | None:
    if not record.trials:
        return None
    states = [trial.state for trial in record.trials]
    last = points[-1] if points else None
    return {
        "trials": len(states),
        "planned": number(record.part("plan").get("trials")),
        **{state: states.count(state) for state in ("done", "infeasible", "failed")},
        "networks": len({trial.arch for trial in record.trials}),
        "best_accuracy": last.best if last else None,
        "hypervolume": last.hypervolume if last else None,
        "reasons": _reasons(record.trials),
    }


def _reasons(trials: Iterable[Trial]) -> list[Json]:
    """Count the trials without a result by state and reason; reasons that differ in numbers are one."""
    found: dict[tuple[str, str], Json] = {}
    for trial in trials:
        if trial.state == "done":
            continue
        reason = (trial.note.strip().splitlines() or ["no reason recorded"])[0]
        kind = (trial.state, re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", reason))
        entry = found.setdefault(kind, {"state": trial.state, "reason": reason, "count": 0})
        entry["count"] += 1
    return sorted(found.values(), key=lambda one: (-one["count"], one["state"], one["reason"]))


def _all_effects(record: Record, asked: Question) -> Json | None:
    """Fit the effects on accuracy and predicted latency, the choices with the widest reach first."""
    if record.space is None:
        return None
    names = set(record.space.choices)
    done = [one for one in record.trials if one.state == "done" and set(one.arch) == names]
    fits: dict[str, Effects] = {}
    for part, value in (("accuracy", asked.accuracy), ("latency_ms", asked.latency_ms)):
        known = [(one.arch, v) for one in done if (v := value(one)) is not None]
        fit = additive_effects(record.space, [arch for arch, _ in known], [v for _, v in known])
        if fit is not None:
            fits[part] = fit
    if not fits:
        return None
    return {
        "trials": len(done),
        "explained": {part: fit.explained for part, fit in fits.items()},
        "choices": _effect_rows(fits),
    }


def _effect_rows(fits: Mapping[str, Effects]) -> list[Json]:
    """Return the effects by choice; first comes what spans the largest share of either axis."""
    rows: dict[str, Json] = {}
    for part, fit in fits.items():
        reach = spans(fit.effects)
        widest = max(reach.values()) or 1.0
        for one in fit.effects:
            row = rows.setdefault(one.choice, {"choice": one.choice, "weight": 0.0, "options": {}})
            row["weight"] = max(row["weight"], reach[one.choice] / widest)
            option = row["options"].setdefault(repr(one.option), {"option": one.option, "trials": one.trials})
            option[part] = {"value": one.value, "error": one.error, "distinct": one.distinct}
    ordered = sorted(rows.values(), key=lambda row: (-row["weight"], row["choice"]))
    return [row | {"options": list(row["options"].values())} for row in ordered if len(row["options"]) > 1]


def _standard_error(record: Record, best: Json | None) -> float | None:
    """Return the binomial standard error of the recommended test accuracy, if the split's size is known."""
    samples = number(mapping(record.part("task").get("sizes")).get("test"))
    test = best["test"] if best else None
    if not samples or test is None or not 0 <= test <= 1:
        return None
    return math.sqrt(test * (1 - test) / samples)


def _missing(record: Record) -> list[str]:
    """Say what an unfinished run lacks, in the order of the work."""
    plan, stages = record.part("plan"), record.part("stages")
    steps, trials = number(plan.get("steps")) or 0, number(plan.get("trials")) or 0
    trained = int(record.training[-1]["step"]) + 1 if record.training else 0
    lacking = []
    if not record.latency_model:
        lacking.append(f"latency is not modelled yet ({record.latency_samples} networks measured)")
    if "train" not in stages and trained < steps:
        lacking.append(f"training has logged {trained:,} of {steps:,.0f} steps")
    if "search" not in stages and len(record.trials) < max(trials, 1):
        lacking.append(f"the search has told {len(record.trials):,} of {trials:,.0f} trials")
    if (absent := _absent(record)) and "verify" not in stages:
        lacking.append(f"no measured baseline yet: {', '.join(absent)}")
    if not record.front and "verify" not in stages:
        lacking.append("no network is verified yet")
    if record.best is None and "verify" not in stages:
        lacking.append("no network is recommended yet")
    return lacking


def _absent(record: Record) -> list[str]:
    """Return the baselines that were asked for and are not measured."""
    asked = BASELINES if record.part("arguments").get("baselines", True) else ()
    return [name for name in asked if name not in {one.name for one in record.baselines}]


def _notes(record: Record, front: Sequence[Json], baselines: Sequence[Json]) -> list[str]:
    """Collect what a reader should know before trusting the numbers."""
    notes = [*texts(record.part("task").get("warnings"))]
    notes += [*texts(record.run.get("warnings")), *texts(record.run.get("notes"))]
    kendall = number(record.latency_model.get("kendall"))
    if kendall is not None and kendall < ROUGH:
        notes.append(
            f"The latency predictor ranks held-out networks roughly "
            f"(Kendall tau {kendall:.2f}, below {ROUGH}): the search may have missed faster networks. "
            "Reported results are measured all the same."
        )
    if "verify" in record.part("stages") and not front:
        notes.append("No network kept the limits when it was measured: loosen the limits, or widen the space.")
    if "verify" in record.part("stages") and (absent := _absent(record)):
        notes.append(f"Left out, since training diverged or the target refused: the baselines {', '.join(absent)}.")
    computed = [
        str(one.get("name")) for one in record.targets if mapping(one.get("fingerprint")).get("runtime") == "computed"
    ]
    if computed:
        notes.append(
            f"Latencies on {' and '.join(computed)} are computed from a datasheet; nothing was measured there."
        )
    outside = [row["name"] for row in front if row["within_limit"] is False]
    if outside:
        of = f"{len(outside)} of {len(front)}"
        notes.append(f"{of} verified networks exceed the limit: {', '.join(outside)}.")
    notes += _noise([*front, *baselines])
    return list(dict.fromkeys([*notes, *record.notes]))


def _behind(best: Json | None, baselines: Sequence[Json]) -> list[str]:
    """Say which hand-made networks within the limits have a higher validation accuracy than the recommended one."""
    if best is None or best["validation"] is None or best["latency_ms"] is None:
        return []
    better = [
        row
        for row in baselines
        if row["validation"] is not None and row["latency_ms"] is not None
        and row["validation"] > best["validation"] and row["within_limit"] is not False
    ]  # fmt: skip
    ahead = [row["name"] for row in better if row["latency_ms"] <= best["latency_ms"]]
    if ahead:
        what = f"{' and '.join(ahead)} is more accurate on the validation split and no slower"
    elif better and best["within_limit"]:  # without a limit, slower and more accurate is a trade, and no lack
        what = f"{' and '.join(row['name'] for row in better)} is more accurate on the validation split, if slower"
    else:
        return []
    return [f"Trained from scratch, {what}: the search needs more time."]


def _trainings(verified: Sequence[Json], baselines: Sequence[Json]) -> list[str]:
    """Say how the networks were trained, so that a reader can judge whether they are compared fairly."""
    tuned = [row for row in verified if row["steps"] is not None and row["finetune_steps"] is not None]
    found: dict[str, list[str]] = {}
    if tuned:
        shared, own = (_span([row[name] for row in tuned]) for name in ("steps", "finetune_steps"))
        found[f"shared weights {shared} steps + {own} of its own"] = [row["name"] for row in tuned]
    for row in [*verified, *baselines]:
        if row["training"] and row not in tuned:
            found.setdefault(row["training"], []).append(row["name"])
    kinds = []
    for training, names in found.items():
        who = ", ".join(names) if len(names) <= len(BASELINES) else f"{len(names)} networks"
        kinds.append(f"{who} ({training})")
    return [f"How the networks were trained: {'; '.join(kinds)}."] if kinds else []


def _span(numbers: Sequence[float]) -> str:
    least, most = (f"{number:,.0f}" for number in (min(numbers), max(numbers)))
    return least if least == most else f"{least} to {most}"


def _noise(rows: Sequence[Json]) -> list[str]:
    """Say which measurements are noisy and why; of many, how many, and one of them for all."""
    noisy = [row for row in rows if row["noisy"]]
    remarks = ["; ".join(row["notes"] or ()) for row in noisy]
    if len(noisy) > 2:
        example = f" For example {noisy[0]['name']}: {remarks[0]}." if remarks[0] else ""
        return [f"{len(noisy)} of {len(rows)} measurements are noisy; repeat them on an idle machine.{example}"]
    return [
        f"The measurement of {row['name']} is noisy{': ' + remark if remark else ''}."
        for row, remark in zip(noisy, remarks, strict=True)
    ]
